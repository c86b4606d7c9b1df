"""The keys that operator and gateway sign tokens with, each in a Secret that only its own reads.

A Secret holds the key that signs and the one that will sign next; a ConfigMap of each served
namespace, which pods mount, holds the public halves. core/key_ring.py decides when keys change. A
third Secret has the token by which metrics are scraped.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Callable, Sequence

from espalier import identity
from espalier.core.key_ring import KeyRing, published, turned
from espalier.core.manifests.installation import KEYS_CONFIG_MAP, KEYS_FIELD
from espalier.core.manifests.labels import MANAGED
from espalier.identity import (
    GATEWAY_KEY_SECRET,
    OPERATOR_KEY_SECRET,
    PRIVATE_KEY_FIELD,
    SCRAPE_TOKEN_FIELD,
    SCRAPE_TOKEN_SECRET,
)
from espalier.kube.cluster import Cluster, ClusterError
from espalier.kube.objects import Body, ObjectKey

TURN_SECONDS = 30.0
# On a Secret: whatever a person writes there, when it is new, asks for a new key.
ROTATE = "espalier.dev/rotate"
_NEXT_FIELD, _STATE_FIELD = "next.pem", "state.json"

logger = logging.getLogger(__name__)


class SigningKeyError(Exception):
    """The Secret exists but does not hold a key."""


class SigningKeys:
    """Both rings of keys, kept in their Secrets and shown to pods.

    Args:
        cluster: where Secrets and ConfigMaps are.
        namespace: the operator's own.
        served: the namespaces whose pods verify tokens.
        rotate_after: seconds until a key is replaced unasked.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        served: Sequence[str],
        rotate_after: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._served = served
        self._rotate_after = rotate_after
        self._clock = clock
        # Signs the operator's tokens, once ``turn`` has found the key.
        self.signer = identity.Signer("")

    async def turn(self) -> None:
        """Brings the Secrets and every ConfigMap to what they must be now.

        Raises ClusterError for the Secret of a key; a namespace that refuses its ConfigMap is
        logged, and so is a token for scraping that cannot be kept: pods do not need it.
        """
        operator = await self._turned(OPERATOR_KEY_SECRET)
        gateway = await self._turned(GATEWAY_KEY_SECRET)
        self.signer.private_key = operator.current
        keys = identity.PublicKeys(
            operator=published(operator, identity.public_key),
            gateway=published(gateway, identity.public_key),
        )
        for namespace in self._served:
            try:
                await self._publish(namespace, keys.text())
            except ClusterError as error:
                logger.warning("public keys of namespace %s: %s", namespace, error)
        try:
            await self._scrape_token(operator.current)
        except ClusterError as error:
            logger.warning("Secret %s: %s", SCRAPE_TOKEN_SECRET, error)

    async def run(self) -> None:
        """Turns again and again; the first turn is the caller's."""
        while True:
            await asyncio.sleep(TURN_SECONDS)
            try:
                await self.turn()
            except (ClusterError, SigningKeyError) as error:
                logger.warning("signing keys: %s; again in %.0f s", error, TURN_SECONDS)

    async def _turned(self, name: str) -> KeyRing:
        secret, ring = await _found(self._cluster, ObjectKey("Secret", self._namespace, name))
        annotations = secret["metadata"].get("annotations") or {}
        wanted = turned(
            ring,
            requested=annotations.get(ROTATE, ""),
            rotate_after=self._rotate_after,
            now=self._clock(),
            make=identity.generate_private_key,
            public=identity.public_key,
        )
        if wanted != ring:
            # At its resourceVersion: who wrote meanwhile is read at the next turn.
            await self._cluster.replace("Secret", {**secret, "data": _data(wanted)})
            if wanted.current != ring.current:
                logger.info("Secret %s has a new signing key", name)
        return wanted

    async def _scrape_token(self, private_key: str) -> None:
        """Keeps a token in the Secret that Prometheus reads: of the key that signs now, and so long
        before its end that everybody has seen the next one."""
        key = ObjectKey("Secret", self._namespace, SCRAPE_TOKEN_SECRET)
        found = await self._cluster.get(key)
        held = ((found or {}).get("data") or {}).get(SCRAPE_TOKEN_FIELD, "")
        if identity.scrape_is_fresh(base64.b64decode(held).decode(errors="replace"), private_key):
            return
        token = identity.issue_scrape(private_key)
        data = {SCRAPE_TOKEN_FIELD: base64.b64encode(token.encode()).decode()}
        if found is None:
            await self._cluster.create("Secret", _secret(key, data))
        else:
            await self._cluster.replace("Secret", {**found, "data": data})

    async def _publish(self, namespace: str, text: str) -> None:
        key = ObjectKey("ConfigMap", namespace, KEYS_CONFIG_MAP)
        found = await self._cluster.get(key)
        if ((found or {}).get("data") or {}).get(KEYS_FIELD) == text:
            return
        body: Body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": key.name, "namespace": namespace, "labels": {**MANAGED}},
            "data": {KEYS_FIELD: text},
        }
        await self._cluster.apply("ConfigMap", body)


async def ensure(cluster: Cluster, namespace: str, name: str = OPERATOR_KEY_SECRET) -> KeyRing:
    """The ring of a Secret, which the first replica creates."""
    return (await _found(cluster, ObjectKey("Secret", namespace, name)))[1]


async def _found(cluster: Cluster, key: ObjectKey) -> tuple[Body, KeyRing]:
    found = await cluster.get(key)
    if found is None:
        pem = identity.generate_private_key()
        data = {PRIVATE_KEY_FIELD: base64.b64encode(pem.encode()).decode()}
        await cluster.create("Secret", _secret(key, data))
        found = await cluster.get(key)
    if found is None:
        raise SigningKeyError(f"Secret {key.namespace}/{key.name} was deleted as it was made")
    data = {name: base64.b64decode(text).decode() for name, text in found.get("data", {}).items()}
    if not data.get(PRIVATE_KEY_FIELD):
        raise SigningKeyError(
            f"Secret {key.namespace}/{key.name} has no {PRIVATE_KEY_FIELD}: "
            "delete it, and a new one is made"
        )
    state = json.loads(data.get(_STATE_FIELD, "{}"))
    return found, KeyRing(data[PRIVATE_KEY_FIELD], data.get(_NEXT_FIELD, ""), **state)


def _data(ring: KeyRing) -> dict[str, str]:
    state = {
        "following_since": ring.following_since,
        "previous": ring.previous,
        "changed": ring.changed,
        "answered": ring.answered,
    }
    texts = {
        PRIVATE_KEY_FIELD: ring.current,
        _NEXT_FIELD: ring.following,
        _STATE_FIELD: json.dumps(state, sort_keys=True),
    }
    return {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}


def _secret(key: ObjectKey, data: dict[str, str]) -> Body:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": key.name,
            "namespace": key.namespace,
            "labels": {**MANAGED},
        },
        "type": "Opaque",
        "data": data,
    }
