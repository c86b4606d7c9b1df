"""The adapters that the rollouts of a model must load for all of its heads together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from espalier.api.checkpointhead import CheckpointHead
from espalier.api.trainablemodel import TrainableModel
from espalier.core.head import head_request
from espalier.core.lineage.lineage import Lineage, Point
from espalier.core.names import BASE, adapter_name


@dataclass(frozen=True)
class DesiredAdapters:
    """The adapter that one head wants loaded; ``fallback`` is for a pod that refuses it."""

    head: str
    adapter: str
    fallback: str


def desired_adapters(
    model: str, heads: Sequence[CheckpointHead], lineage: Lineage
) -> tuple[DesiredAdapters, ...]:
    """The adapters that the heads of a model want loaded, by their statuses.

    The leading head comes first, then the oldest: a younger head never crowds out an older one.
    """
    ordered = sorted(
        heads,
        key=lambda h: (not head_request.leads(h), h.metadata.creation_timestamp, h.metadata.name),
    )
    desired = []
    for head in ordered:
        place = held_point(lineage, head)
        if place is not None and head.metadata.deletion_timestamp is None:
            adapter = adapter_name(model, place.digest)
            current = head.status.current
            fallback = adapter_name(model, current.digest) if current is not None else adapter
            desired.append(DesiredAdapters(head.metadata.name, adapter, fallback))
    return tuple(desired)


def fitting(
    desired: Sequence[DesiredAdapters], model: TrainableModel | None
) -> tuple[DesiredAdapters, ...]:
    """The part of these that a rollout of the model can load at once.

    Adapters lie side by side, up to ``maxAdapters``; full weights replace each other and the base.
    """
    if model is None:
        return ()
    if model.spec.adapter.type == "Full":
        # A pod that refuses the first head's weights falls back to what the first head serves.
        same = (each for each in desired if each.adapter == desired[0].adapter)
        return tuple(replace(each, fallback=desired[0].fallback) for each in same)
    return _beside_the_base(desired, model.spec.rollout.max_adapters)


def _beside_the_base(desired: Sequence[DesiredAdapters], most: int) -> tuple[DesiredAdapters, ...]:
    adapters: set[str] = {BASE}
    kept = []
    for each in desired:
        if each.adapter in adapters or len(adapters) <= most:
            adapters.add(each.adapter)
            kept.append(each)
    return tuple(kept)


def choose(desired: Sequence[DesiredAdapters], refused: Collection[str]) -> list[str]:
    """The adapters to request from a pod that refuses some; the base is always loaded."""
    chosen = {
        next((name for name in (each.adapter, each.fallback) if name not in refused), BASE)
        for each in desired
    }
    return sorted(chosen - {BASE})


def held_point(lineage: Lineage, head: CheckpointHead) -> Point | None:
    """The target on record, or the served checkpoint if the target's object is missing."""
    target, current = head.status.target, head.status.current
    place = lineage.place(target.name) if target is not None else None
    if place is None and current is not None:
        return Point(current.name, current.step, current.digest)
    return place
