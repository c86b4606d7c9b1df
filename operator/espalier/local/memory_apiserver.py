"""An API server in memory: the Cluster port for one process, with what reconcilers rely on.

Server-side apply removes the fields that a manager applied before and now leaves out; lists are
replaced whole. Deleting an object deletes what it owns, once its finalizers are gone.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self, TypeVar

from espalier.kube.cache import Cache
from espalier.kube.cluster import (
    MANAGER,
    STATUS_MANAGER,
    ClusterError,
    Extra,
    Propagation,
    TokenReviewResult,
)
from espalier.kube.objects import KINDS, Body, ObjectKey, key_of, kind_of
from espalier.local.server_side_apply import (
    Path,
    copy,
    desired,
    leaves,
    merge,
    owned,
    remove,
    same,
    without_identity,
)

T = TypeVar("T")
Watcher = Callable[[str, Body], None]


class MemoryCluster:
    """See Cluster. ``now`` is the time as RFC 3339; ``token`` is the one user's, who may do all."""

    def __init__(self, now: Callable[[], str], token: str = "") -> None:
        self.objects: dict[ObjectKey, Body] = {}
        self._now = now
        self._token = token
        # By object and manager, the fields that it applied.
        self._applied: dict[ObjectKey, dict[str, set[Path]]] = defaultdict(dict)
        self.version = 0
        self._watchers: list[Watcher] = []

    def watch(self, watcher: Watcher) -> None:
        """Call ``watcher(ADDED | MODIFIED | DELETED, body)`` for every change from now on."""
        self._watchers.append(watcher)

    def feed(self, cache: Cache) -> None:
        """Put every object into the cache, now and at each change."""

        def follow(event: str, body: Body) -> None:
            (cache.forget if event == "DELETED" else cache.put)(body["kind"], body)

        for key, body in self.objects.items():
            cache.put(key.kind, copy(body))
        for kind in KINDS:
            cache.mark_synced(kind)
        self.watch(follow)

    def dump(self, kinds: Collection[str]) -> Sequence[Body]:
        """The objects of some kinds, with their managers, as ``restore`` reads them."""
        return [
            {**body, "metadata": {**body["metadata"], "managedFields": self._managers(key)}}
            for key, body in self.objects.items()
            if key.kind in kinds
        ]

    def _managers(self, key: ObjectKey) -> Sequence[Body]:
        """The paths of each manager's fields; an API server stores them as a tree."""
        applied = self._applied.get(key, {})
        return [{"manager": manager, "paths": sorted(paths)} for manager, paths in applied.items()]

    def restore(self, bodies: Sequence[Body]) -> None:
        """Restore dumped objects, before anything watches."""
        for kept in bodies:
            body = copy(kept)
            key = key_of(body["kind"], body)
            for entry in body["metadata"].pop("managedFields", ()):
                self._applied[key][entry["manager"]] = {tuple(path) for path in entry["paths"]}
            self.objects[key] = body
            self.version = max(self.version, int(body["metadata"]["resourceVersion"]))

    def edit(self, key: ObjectKey, change: Callable[[Body], None]) -> Body:
        """Change a live object as a user or another controller would."""
        live = self.objects[key]
        edited = copy(live)
        change(edited)
        return self._store(key, edited, live)

    def set_status(self, key: ObjectKey, status: Body) -> None:
        """Write an object's status as its controller would; do nothing if the object is gone."""
        if key in self.objects:
            self.edit(key, lambda body: body.update(status=status))

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

    def _uid(self) -> str:
        return str(uuid.uuid4())

    def _apply(self, key: ObjectKey, intent: Body, manager: str) -> Body:
        live = self.objects.get(key)
        body = copy(live) if live else self._new(key)
        paths = set(leaves(without_identity(intent)))
        applied = self._applied[key]
        dropped = applied.get(manager, set()) - paths
        applied[manager] = paths
        for path in dropped.difference(*applied.values()):
            remove(body, path)
        merge(body, without_identity(intent))
        return self._store(key, body, live)

    def _new(self, key: ObjectKey) -> Body:
        metadata = {
            "name": key.name,
            "namespace": key.namespace,
            "uid": self._uid(),
            "generation": 0,
            "creationTimestamp": self._now(),
        }
        return {
            "apiVersion": kind_of(key.kind).api_version,
            "kind": key.kind,
            "metadata": metadata,
        }

    def _store(self, key: ObjectKey, body: Body, live: Body | None) -> Body:
        # A value that JSON cannot express fails here, as at a real server; fields come back sorted.
        body = json.loads(json.dumps(body, sort_keys=True))
        if live is not None and same(body, live):
            return live
        if live is None or desired(body) != desired(live):
            body["metadata"]["generation"] = body["metadata"].get("generation", 0) + 1
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.objects[key] = body
        self._notify("ADDED" if live is None else "MODIFIED", body)
        if body["metadata"].get("deletionTimestamp") and not body["metadata"].get("finalizers"):
            self._delete(key, cascade=True)
        return body

    def _delete(self, key: ObjectKey, *, cascade: bool) -> None:
        live = self.objects[key]
        if live["metadata"].get("finalizers"):
            if "deletionTimestamp" not in live["metadata"]:
                leaving = copy(live)
                leaving["metadata"]["deletionTimestamp"] = self._now()
                self._store(key, leaving, live)
            return
        body = self.objects.pop(key)
        self._applied.pop(key, None)
        self.version += 1
        last = copy(body)
        last["metadata"]["resourceVersion"] = str(self.version)
        self._notify("DELETED", last)
        for child in list(self.objects) if cascade else ():
            if child in self.objects and owned(self.objects[child], body["metadata"]["uid"]):
                self._delete(child, cascade=True)

    def _notify(self, event: str, body: Body) -> None:
        for watcher in [*self._watchers]:
            watcher(event, copy(body))


def _field(body: Body, path: str) -> str:
    """The value that a field selector compares; empty for a field that is absent."""
    value: Any = body
    for part in path.split("."):
        value = value.get(part, {}) if isinstance(value, dict) else {}
    return str(value or "")
