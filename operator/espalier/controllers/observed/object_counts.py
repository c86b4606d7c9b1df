"""Counts objects by kind, namespace and state, and what is rotten, as the cache sees them."""

from __future__ import annotations

from espalier.api.crds import KINDS
from espalier.api.trainablemodel import TrainableModel
from espalier.core import conditions
from espalier.core.run.run import SUSPENDED
from espalier.core.run.turn import SUCCEEDED
from espalier.kube import queue_metrics
from espalier.kube.objects import Body, ObjectKey

_OURS = frozenset(kind.name for kind in KINDS)
# An object is in the first of these that is True.
STATES = (SUCCEEDED, SUSPENDED, conditions.STALLED, conditions.READY)
PENDING = "Pending"


class ObjectCounts:
    """Counts from the first object on, so that no scrape looks at thousands of them."""

    def changed(self, key: ObjectKey, old: Body | None, new: Body | None) -> None:
        """An object came, went or changed."""
        if key.kind not in _OURS:
            return
        for body, change in ((old, -1), (new, 1)):
            if body is not None:
                queue_metrics.OBJECTS.labels(key.kind, key.namespace, _state(body)).inc(change)
                if key.kind == TrainableModel.__name__:
                    queue_metrics.ROTTEN.labels(key.namespace).inc(change * _rotten(body))


def _state(body: Body) -> str:
    found = body.get("status", {}).get("conditions", ())
    true = {condition["type"] for condition in found if condition["status"] == "True"}
    return next((state for state in STATES if state in true), PENDING)


def _rotten(body: Body) -> int:
    """How much the last scrub of a model found rotten: Checkpoints, and the base."""
    scrub = body.get("status", {}).get("scrub") or {}
    return int(scrub.get("rottenCount", 0)) + bool(scrub.get("rottenBase"))
