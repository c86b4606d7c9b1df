"""An API server in memory: the Cluster port for one process, with what reconcilers rely on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

from espalier.kube.cluster import (
    MANAGER,
    STATUS_MANAGER,
    ClusterError,
    Extra,
    Propagation,
    TokenReviewResult,
)
from espalier.kube.objects import Body, ObjectKey, key_of
from espalier.local.memory_objects import MemoryObjects
from espalier.local.server_side_apply import copy

T = TypeVar("T")


class MemoryCluster(MemoryObjects):
    """See Cluster. ``now`` is the time as RFC 3339; ``token`` is the one user's, who may do all."""

    def __init__(self, now: Callable[[], str], token: str = "") -> None:
        super().__init__(now)
        self._token = token

    async def get(self, key: ObjectKey) -> Body | None:
        """See Cluster."""
        found = self.objects.get(key)
        return copy(found) if found else None

    async def list(
        self,
        kind: str,
        namespace: str | None,
        labels: Mapping[str, str] | None = None,
        *,
        fields: Mapping[str, str] | None = None,
    ) -> list[Body]:
        """See Cluster."""
        wanted = (labels or {}).items()
        return [
            copy(body)
            for key, body in self.objects.items()
            if key.kind == kind
            and namespace in (None, key.namespace)
            and wanted <= body["metadata"].get("labels", {}).items()
            and all(_field(body, path) == value for path, value in (fields or {}).items())
        ]

    async def each(
        self,
        kind: str,
        namespace: str | None,
        take: Callable[[Body], None],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """See Cluster."""
        for body in await self.list(kind, namespace, labels):
            take(body)

    async def apply(self, kind: str, body: Body, *, manager: str = MANAGER) -> Body:
        """See Cluster."""
        intent = {name: value for name, value in body.items() if name != "status"}

        def effect(key: ObjectKey) -> Body:
            uid = self.objects.get(key, {"metadata": {}})["metadata"].get("uid", "")
            if body["metadata"].get("uid", uid) != uid:
                raise ClusterError(409, "Conflict", f"{key} has another uid")
            return self._apply(key, intent, manager)

        return self._mutate("apply", key_of(kind, body), effect)

    async def apply_status(self, kind: str, body: Body, *, manager: str = STATUS_MANAGER) -> Body:
        """See Cluster."""
        key = key_of(kind, body)
        intent = {"status": body["status"]}

        def effect(key: ObjectKey) -> Body:
            if key not in self.objects:
                raise ClusterError(404, "NotFound", f"{key} not found")
            live = self.objects[key]["metadata"]
            for name in ("uid", "resourceVersion"):
                if body["metadata"].get(name, live[name]) != live[name]:
                    raise ClusterError(409, "Conflict", f"{key} has another {name}")
            return self._apply(key, intent, manager)

        return self._mutate("apply_status", key, effect)

    async def create(self, kind: str, body: Body) -> Body | None:
        """See Cluster."""
        key = key_of(kind, body)

        def effect(key: ObjectKey) -> Body | None:
            if key in self.objects:
                return None
            return self._apply(key, body, "create")

        return self._mutate("create", key, effect)

    async def replace(self, kind: str, body: Body) -> Body:
        """See Cluster."""
        key = key_of(kind, body)

        def effect(key: ObjectKey) -> Body:
            live = self.objects.get(key)
            if live is None:
                raise ClusterError(404, "NotFound", f"{key} not found")
            version = body["metadata"].get("resourceVersion")
            if version not in (None, live["metadata"]["resourceVersion"]):
                raise ClusterError(409, "Conflict", f"{key} was changed")
            kept = {name: live["metadata"][name] for name in ("uid", "creationTimestamp")}
            metadata = {**body["metadata"], **kept, "generation": live["metadata"]["generation"]}
            identity = {name: live[name] for name in ("apiVersion", "kind")}
            return self._store(key, {**copy(body), **identity, "metadata": metadata}, live)

        return self._mutate("replace", key, effect)

    async def delete(
        self, key: ObjectKey, *, propagation: Propagation = "Background", uid: str | None = None
    ) -> None:
        """See Cluster."""

        def effect(key: ObjectKey) -> None:
            live = self.objects.get(key)
            if live is not None and uid in (None, live["metadata"]["uid"]):
                self._delete(key, cascade=propagation != "Orphan")

        self._mutate("delete", key, effect)

    def acting_for(
        self,
        user: str,
        groups: Sequence[str],
        *,
        uid: str = "",
        extra: Extra = (),
        manager: str,
    ) -> Self:
        """See Cluster: there is one user, who may do everything."""
        return self

    async def review_token(self, token: str, audiences: Sequence[str]) -> TokenReviewResult:
        """See Cluster."""
        if not self._token or token != self._token:
            return TokenReviewResult(authenticated=False, error="invalid bearer token")
        return TokenReviewResult(True, username="local", audiences=tuple(audiences))

    async def review_access(  # noqa: PLR0917 the port's signature
        self,
        user: str,
        groups: Sequence[str],
        verb: str,
        group: str,
        resource: str,
        namespace: str,
        name: str,
        *,
        uid: str = "",
        extra: Extra = (),
    ) -> bool:
        """See Cluster."""
        return True

    def _mutate(self, verb: str, key: ObjectKey, effect: Callable[[ObjectKey], T]) -> T:
        """Store a change and notify the watchers; every write ends here."""
        return copy(effect(key))


def _field(body: Body, path: str) -> str:
    """The value that a field selector compares; empty for a field that is absent."""
    value: Any = body
    for part in path.split("."):
        value = value.get(part, {}) if isinstance(value, dict) else {}
    return str(value or "")
