"""Writes statuses: only if they differ, and with an Event if the reason of Ready changed.

A reconciler names the other conditions that are worth an Event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.alias_generators import to_camel

from espalier.api.meta import Condition, Type
from espalier.core import conditions
from espalier.kube.cache import Cache, ChangeSource
from espalier.kube.cluster import Cluster
from espalier.kube.events import EventRecorder
from espalier.kube.objects import Body, ObjectKey, without_managers

CONDITIONS = TypeAdapter(list[Condition])
TRIPLE = (conditions.READY, conditions.RECONCILING, conditions.STALLED)
KNOWN = frozenset(to_camel(field.name) for field in fields(Condition))


class StatusWriter:
    """Writes to the API server and updates the cache at once."""

    def __init__(self, cluster: Cluster, cache: Cache, events: EventRecorder) -> None:
        self._cluster = cluster
        self._cache = cache
        self._events = events

    async def write(self, kind: str, body: Body, status: Type) -> Body | None:
        """Give the object in ``body`` this status; the object as written, None if it had it.

        ClusterError 409 if the object is not the one that ``body`` shows any more.
        """
        wire = status.wire()
        current = body.get("status", {})
        return None if _same(current, wire) else await self._put(kind, body, wire)

    async def stall(self, kind: str, body: Body, reason: str, message: str, now: str) -> bool:
        """Add Stalled to the status of the object; True if that changed it.

        It is written as it is: the status need not be one that this version could have written.
        """
        status = body.get("status", {})
        triple_before = [c for c in status.get("conditions", []) if c["type"] in TRIPLE]
        current = CONDITIONS.validate_python(
            [{name: value for name, value in c.items() if name in KNOWN} for c in triple_before]
        )
        generation = body["metadata"].get("generation", 0)
        settled = conditions.settle(current, conditions.stalled(reason, message), generation, now)
        if settled == current:
            return False
        others = [c for c in status.get("conditions", []) if c["type"] not in TRIPLE]
        triple = CONDITIONS.dump_python(settled, mode="json", by_alias=True)
        intent = {"conditions": [*triple, *others], "observedGeneration": generation}
        await self._put(kind, body, {**status, **intent})
        return True

    async def _put(self, kind: str, body: Body, status: Body) -> Body:
        metadata = body["metadata"]
        seen = {n: metadata[n] for n in ("name", "namespace", "uid", "resourceVersion")}
        applied = await self._cluster.apply_status(kind, {"metadata": seen, "status": status})
        written = without_managers(applied)
        source = ChangeSource.OWN_STATUS if _same(written["status"], status) else ChangeSource.SEEN
        self._cache.put(kind, written, source)
        return written

    async def refresh(self, key: ObjectKey) -> None:
        """Read an object that another writer changed since it was cached."""
        live = await self._cluster.get(key)
        if live is None:
            self._cache.drop(key)
        else:
            self._cache.put(key.kind, without_managers(live))

    async def announce(
        self,
        kind: str,
        body: Body,
        before: Sequence[Condition],
        after: Sequence[Condition],
        *,
        faults: Sequence[str] = (),
    ) -> None:
        """Record an Event if Ready took another status or reason.

        And one for each condition of the types ``faults`` that turned False, or True after that.
        """
        for type_ in faults:
            await self._announce_fault(
                kind, body, conditions.find(before, type_), conditions.find(after, type_)
            )
        old, new = (conditions.find(c, conditions.READY) for c in (before, after))
        if new is None or (
            old is not None and (old.status, old.reason) == (new.status, new.reason)
        ):
            return
        warns = new.status != "True" and conditions.is_trouble(new.reason)
        await self.record(kind, body, "Warning" if warns else "Normal", new.reason, new.message)

    async def _announce_fault(
        self, kind: str, body: Body, old: Condition | None, new: Condition | None
    ) -> None:
        was = (old.status, old.reason) if old is not None else ("Unknown", "")
        if new is None or was == (new.status, new.reason):
            return
        if new.status == "False":
            await self.record(kind, body, "Warning", new.reason, new.message)
        elif new.status == "True" and was[0] == "False":
            await self.record(kind, body, "Normal", new.reason, f"{new.type}: {new.message}")

    async def record(
        self, kind: str, body: Body, type_: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        """Record an Event on an object."""
        await self._events.record({**body, "kind": kind}, type_, reason, message)


def _same(current: Body, wire: Body) -> bool:
    """Whether two statuses are equal apart from the order of lists; most parts are identical."""
    if current == wire:
        return True
    return current.keys() == wire.keys() and all(
        value == wire[name] or _canonical(value) == _canonical(wire[name])
        for name, value in current.items()
    )


def _canonical(value: Any) -> Any:
    """The value with lists of named things in one order: merging keeps no particular one.

    The API server returns fields in an order of its own, and sorting by text depends on it.
    """
    if isinstance(value, dict):
        return {name: _canonical(inner) for name, inner in sorted(value.items())}
    if isinstance(value, list):
        return sorted((_canonical(inner) for inner in value), key=repr)
    return value
