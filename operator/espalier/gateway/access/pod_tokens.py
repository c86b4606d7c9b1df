"""Tokens that the gateway shows to trainers and rollouts, and signs for its own later use."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jwt

from espalier import identity
from espalier.core.names import audience
from espalier.gateway.problems import not_ready
from espalier.gateway.world.pod_addresses import PodAddress
from espalier.gateway.world.world import NamespacedName

# Well inside a token's life, because a request may wait before the other side reads it.
REUSE_SECONDS = identity.LIFETIME_SECONDS / 2


class TokenIssuer:
    """Signs one token per pod and term and reuses it for half its life.

    It starts without a key, because the operator creates the Secret and may come up later.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._private_key = ""
        self._clock = clock
        self._issued: dict[tuple[str, int], tuple[float, str]] = {}

    @property
    def ready(self) -> bool:
        """True once there is a key."""
        return bool(self._private_key)

    def use(self, private_key: str) -> None:
        """Signs with this Ed25519 key (PEM) from now on."""
        if private_key != self._private_key:
            self._private_key = private_key
            self._issued.clear()

    def sign(self, claims: Mapping[str, Any]) -> str:
        """A token for any replica of the gateway to ``read``; no pod takes its audience."""
        self._require_key()
        return jwt.encode(dict(claims), self._private_key, algorithm="EdDSA")

    def read(self, token: str, audience: str) -> dict[str, Any] | None:
        """The claims of a token that was signed with the present key and has not expired."""
        self._require_key()
        try:
            found: dict[str, Any] = jwt.decode(
                token,
                identity.public_key(self._private_key),
                algorithms=["EdDSA"],
                audience=audience,
                options={"require": ["exp", "aud"]},
            )
        except jwt.InvalidTokenError:
            return None
        return found

    def _require_key(self) -> None:
        if not self.ready:
            raise not_ready("NoSigningKey", "the operator has not created the signing key yet")

    def header(self, model: NamespacedName, pod: PodAddress, term: int = 0) -> dict[str, str]:
        """The Authorization header for a trainer (under a term) or rollout (0) of a model."""
        self._require_key()
        now = self._clock()
        name = audience(model.namespace, model.name, pod.role, pod.uid)
        expires, token = self._issued.get((name, term), (now, ""))
        if expires <= now:
            self._issued = {key: issued for key, issued in self._issued.items() if issued[0] > now}
            token = identity.issue(self._private_key, "gateway", name, term)
            self._issued[name, term] = (now + REUSE_SECONDS, token)
        return {"Authorization": f"Bearer {token}"}
