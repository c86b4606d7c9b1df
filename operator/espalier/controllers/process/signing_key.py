"""The keys that operator and gateway sign tokens with, each in a Secret that only its own reads."""

from __future__ import annotations

import base64

from espalier import identity
from espalier.core.manifests.labels import MANAGED
from espalier.identity import OPERATOR_KEY_SECRET, PRIVATE_KEY_FIELD
from espalier.kube.cluster import Cluster
from espalier.kube.objects import Body, ObjectKey


class SigningKeyError(Exception):
    """The Secret exists but does not hold a key."""


async def ensure(cluster: Cluster, namespace: str, name: str = OPERATOR_KEY_SECRET) -> str:
    """The private key of a Secret as PEM; the first replica creates it."""
    key = ObjectKey("Secret", namespace, name)
    found = await cluster.get(key)
    if found is None:
        await cluster.create("Secret", _secret(key))
        found = await cluster.get(key)
    data = (found or {}).get("data", {}).get(PRIVATE_KEY_FIELD)
    if not data:
        raise SigningKeyError(
            f"Secret {namespace}/{name} has no {PRIVATE_KEY_FIELD}: "
            "delete it, and a new one is made"
        )
    return base64.b64decode(data).decode()


def _secret(key: ObjectKey) -> Body:
    pem = identity.generate_private_key()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": key.name,
            "namespace": key.namespace,
            "labels": {**MANAGED},
        },
        "type": "Opaque",
        "data": {PRIVATE_KEY_FIELD: base64.b64encode(pem.encode()).decode()},
    }
