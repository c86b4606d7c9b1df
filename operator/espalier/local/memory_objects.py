"""Objects in memory, with what an API server does as they are written.

It keeps the owners of fields, versions, generations and finalizers, and tells who watches.
Server-side apply removes the fields that a manager applied before and now leaves out; lists are
replaced whole. Deleting an object deletes what it owns, once its finalizers are gone.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

from espalier.kube.cache import Cache
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

Watcher = Callable[[str, Body], None]


class MemoryObjects:
    """All objects of a cluster by their keys. ``now`` is the time as RFC 3339."""

    def __init__(self, now: Callable[[], str]) -> None:
        self.objects: dict[ObjectKey, Body] = {}
        self._now = now
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
