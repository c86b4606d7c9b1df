"""The key that operator and gateway sign tokens with, kept in a Secret."""

from __future__ import annotations

import base64

from espalier import identity
from espalier.kube.cluster import Cluster
from espalier.kube.objects import Body, Key

NAME = "espalier-signing-key"
FIELD = "private.pem"


class SigningKeyError(Exception):
    """The Secret exists but does not hold a key."""


async def ensure(cluster: Cluster, namespace: str) -> str:
    """The private key as PEM; made once, by whichever replica comes first."""
    key = Key("Secret", namespace, NAME)
    found = await cluster.get(key)
    if found is None:
        await cluster.create("Secret", _secret(namespace))
        found = await cluster.get(key)
    data = (found or {}).get("data", {}).get(FIELD)
    if not data:
        raise SigningKeyError(
            f"Secret {namespace}/{NAME} has no {FIELD}: delete it, and a new one is made"
        )
    return base64.b64decode(data).decode()


def _secret(namespace: str) -> Body:
    pem = identity.generate_private_key()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": NAME,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "espalier"},
        },
        "type": "Opaque",
        "data": {FIELD: base64.b64encode(pem.encode()).decode()},
    }
