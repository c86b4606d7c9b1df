"""What the rollouts of a model are to have loaded for all of its heads together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from espalier.api.checkpointhead import CheckpointHead
from espalier.api.trainablemodel import TrainableModel
from espalier.core.head import head_request
from espalier.core.lineage.lineage import Lineage, Point
from espalier.core.names import BASE, adapter_name


@dataclass(frozen=True)
class Wish:
    """What one head wants loaded; ``fallback`` is what it serves, for a pod that refuses it."""

    head: str
    adapter: str
    fallback: str


def wishes(model: str, heads: Sequence[CheckpointHead], lineage: Lineage) -> tuple[Wish, ...]:
    """The wishes of a model's heads, as their statuses have them on record.

    The leading head comes first, then the oldest: whoever came before is not crowded out.
    """
    ordered = sorted(
        heads,
        key=lambda h: (not head_request.leads(h), h.metadata.creation_timestamp, h.metadata.name),
    )
    found = []
    for head in ordered:
        place = held_point(lineage, head)
        if place is not None and head.metadata.deletion_timestamp is None:
            adapter = adapter_name(model, place.digest)
            current = head.status.current
            fallback = adapter_name(model, current.digest) if current is not None else adapter
            found.append(Wish(head.metadata.name, adapter, fallback))
    return tuple(found)


def fitting(found: Sequence[Wish], model: TrainableModel | None) -> tuple[Wish, ...]:
    """The wishes that a rollout of the model can meet; equal ones share what is loaded.

    Adapters lie side by side, up to ``maxAdapters``; full weights replace each other and the base.
    """
    if model is None:
        return ()
    if model.spec.adapter.type == "Full":
        return tuple(_like(found[0], wish) for wish in found if wish.adapter == found[0].adapter)
    return _beside_the_base(found, model.spec.rollout.max_adapters)


def _like(first: Wish, wish: Wish) -> Wish:
    """One that goes where the first goes if a pod refuses what both want."""
    return replace(wish, fallback=first.fallback)


def _beside_the_base(found: Sequence[Wish], most: int) -> tuple[Wish, ...]:
    adapters: set[str] = {BASE}
    kept = []
    for wish in found:
        if wish.adapter in adapters or len(adapters) <= most:
            adapters.add(wish.adapter)
            kept.append(wish)
    return tuple(kept)


def choose(found: Sequence[Wish], refused: Collection[str]) -> list[str]:
    """What to ask of a pod that refuses some adapters; the base needs no asking."""
    chosen = {
        next((a for a in (wish.adapter, wish.fallback) if a not in refused), BASE) for wish in found
    }
    return sorted(chosen - {BASE})


def held_point(lineage: Lineage, head: CheckpointHead) -> Point | None:
    """The target on record; what is served, if the target's Checkpoint is not to be found."""
    target, current = head.status.target, head.status.current
    place = lineage.place(target.name) if target is not None else None
    if place is None and current is not None:
        return Point(current.name, current.step, current.digest)
    return place
