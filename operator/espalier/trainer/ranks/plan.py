"""Which datum goes to which rank: whole groups where possible, balanced by estimated work. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from espalier.trainer.data import Datum
from espalier.trainer.plan import balance

Share = list[int]


@dataclass(frozen=True)
class _Unit:
    """Datums that stay together, by index, and the work that they cause."""

    members: tuple[int, ...]
    work: float


def plan(data: Sequence[Datum], ranks: int, attention: float) -> list[Share]:
    """For every rank the indices of its datums, ascending; deterministic.

    A group shares its prompt, so it stays on one rank unless it is more than a rank's fair share
    of the work; then its trajectories are spread and the prompt is computed more than once. A
    trajectory is never split. ``attention``: the cost of attending to one token relative to a
    token's linear layers.
    """
    together: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, datum in enumerate(data):
        together[datum.family].append(index)
    units = [_unit(data, members, attention) for members in together.values()]
    fair = sum(unit.work for unit in units) / ranks
    pieces = sorted(
        (p for unit in units for p in _pieces(data, unit, fair, attention)),
        key=lambda piece: piece.members,
    )
    return [
        sorted(index for piece in chosen for index in pieces[piece].members)
        for chosen in balance([piece.work for piece in pieces], ranks)
    ]


def work(data: Sequence[Datum], attention: float) -> float:
    """The estimated cost of datums whose shared prefixes are computed once.

    In units of one token's linear layers; a token at position p also attends to p tokens.
    """
    total = 0.0
    before: tuple[int, ...] = ()
    for path in sorted((datum.prompt + datum.output)[:-1] for datum in data):
        shared = _common(before, path)
        new = len(path) - shared
        total += new + attention * (shared + len(path) + 1) * new / 2
        before = path
    return total


def _unit(data: Sequence[Datum], members: Sequence[int], attention: float) -> _Unit:
    return _Unit(tuple(members), work([data[index] for index in members], attention))


def _pieces(data: Sequence[Datum], unit: _Unit, fair: float, attention: float) -> list[_Unit]:
    if unit.work <= fair:
        return [unit]
    trajectories: dict[int, list[int]] = defaultdict(list)
    for index in unit.members:
        trajectories[data[index].trajectory].append(index)
    return [_unit(data, members, attention) for members in trajectories.values()]


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))
