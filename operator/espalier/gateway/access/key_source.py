"""Where API keys are stored: a Secret of each namespace, of which the gateway may get this one."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from espalier.core.api_keys import SECRET
from espalier.gateway.access.remembered import GRANTED_SECONDS, Remembered
from espalier.gateway.problems import not_ready
from espalier.kube.cluster import Cluster, ClusterError
from espalier.kube.objects import Body, ObjectKey

# A revoked key is refused after so long, and a new one is let in.
REVOKED_SECONDS = 2.0
ISSUED_SECONDS = 0.25


class KeySource(Protocol):
    """The stored keys. Both raise RefusalError if they cannot be read."""

    async def entries(self, namespace: str, *, newest: bool = False) -> Mapping[str, str]:
        """The entries of a namespace's keys by name; empty if it has none.

        ``newest``: a key is not among those that were read before.
        """

    async def account_uid(self, namespace: str, account: str) -> str | None:
        """The uid of a service account; None if there is none."""


class ClusterKeys:
    """The keys of a cluster's Secrets, read anew after 2 s, or at once for a key that is new.

    While the API server does not answer, what it said last holds for a minute, as for tokens.
    """

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._clock = clock
        self._objects: Remembered[Body | None] = Remembered(
            clock, granted=REVOKED_SECONDS, refused=REVOKED_SECONDS
        )
        self._newest: Remembered[Body | None] = Remembered(
            clock, granted=ISSUED_SECONDS, refused=ISSUED_SECONDS
        )
        self._last: dict[ObjectKey, tuple[float, Body | None]] = {}

    async def entries(self, namespace: str, *, newest: bool = False) -> Mapping[str, str]:
        """See KeySource."""
        read = self._newest if newest else self._objects
        secret = await self._read(read, ObjectKey("Secret", namespace, SECRET))
        data: Mapping[str, str] = (secret or {}).get("data") or {}
        return {
            name: base64.b64decode(value).decode(errors="replace") for name, value in data.items()
        }

    async def account_uid(self, namespace: str, account: str) -> str | None:
        """See KeySource."""
        found = await self._read(self._objects, ObjectKey("ServiceAccount", namespace, account))
        return str(found["metadata"]["uid"]) if found is not None else None

    async def _read(self, read: Remembered[Body | None], key: ObjectKey) -> Body | None:
        try:
            found = await read.get(key, lambda: self._cluster.get(key))
        except ClusterError as error:
            at, last = self._last.get(key, (-GRANTED_SECONDS, None))
            if self._clock() - at < GRANTED_SECONDS:
                return last
            raise not_ready(
                "ReviewFailed", f"the API server did not show {key}: {error.message}"
            ) from error
        self._last[key] = (self._clock(), found)
        return found
