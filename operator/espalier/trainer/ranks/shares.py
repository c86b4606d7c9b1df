"""Shares datums out to ranks: whole groups if possible, balanced by estimated work. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from espalier.trainer.batch.data import Datum
from espalier.trainer.compute.interface import Share
from espalier.trainer.memory.cost_model import ModelShape, RowSize, balance, step_flops


@dataclass(frozen=True)
class _Unit:
    """Datums that stay together, by index, and their work."""

    members: tuple[int, ...]
    work: float


def plan(data: Sequence[Datum], ranks: int, shape: ModelShape) -> list[Share]:
    """The indices of each rank's datums, ascending; deterministic.

    A group shares its prompt, so it stays on one rank unless it is more than a rank's fair share
    of the work; then its trajectories are spread and the prompt is computed more than once. A
    trajectory is never split.
    """
    together: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, datum in enumerate(data):
        together[datum.family].append(index)
    units = [_unit(data, members, shape) for members in together.values()]
    fair = sum(unit.work for unit in units) / ranks
    pieces = sorted(
        (p for unit in units for p in _pieces(data, unit, fair, shape)),
        key=lambda piece: piece.members,
    )
    return [
        tuple(sorted(index for piece in chosen for index in pieces[piece].members))
        for chosen in balance([piece.work for piece in pieces], ranks)
    ]


def work(data: Sequence[Datum], shape: ModelShape) -> float:
    """The floating-point operations of a step on datums whose shared prefixes cost once."""
    return step_flops(shape, _size(data))


def _size(data: Sequence[Datum]) -> RowSize:
    """The size of one row that holds all datums; it is estimated without laying the row out."""
    tokens = pairs = 0
    before: tuple[int, ...] = ()
    for path in sorted((datum.prompt + datum.output)[:-1] for datum in data):
        shared = _common(before, path)
        tokens += len(path) - shared
        # A token at position p attends to p + 1 tokens.
        pairs += (shared + len(path) + 1) * (len(path) - shared) // 2
        before = path
    return RowSize(tokens, sum(len(datum.output) for datum in data), pairs, gathered=0)


def _unit(data: Sequence[Datum], members: Sequence[int], shape: ModelShape) -> _Unit:
    return _Unit(tuple(members), work([data[index] for index in members], shape))


def _pieces(data: Sequence[Datum], unit: _Unit, fair: float, shape: ModelShape) -> list[_Unit]:
    if unit.work <= fair:
        return [unit]
    trajectories: dict[int, list[int]] = defaultdict(list)
    for index in unit.members:
        trajectories[data[index].trajectory].append(index)
    return [_unit(data, members, shape) for members in trajectories.values()]


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))
