"""The curve of a metric over the steps of the tree, one line a branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from espalier.api.checkpoint import Checkpoint
from espalier.api.meta import decimal
from espalier.core.names import MAIN


@dataclass(frozen=True)
class CurveLine:
    """A branch: checkpoints, steps and values of equal length, from the point it grew from."""

    branch: str
    names: tuple[str, ...]
    steps: tuple[int, ...]
    values: tuple[float, ...]


def lines(checkpoints: Sequence[Checkpoint], metric: str) -> list[CurveLine]:
    """The branches that have the metric, main first, then in the order that they grew."""
    points = {
        checkpoint.metadata.name: (checkpoint.metadata.name, checkpoint.spec.step, value)
        for checkpoint in checkpoints
        if (value := value_of(checkpoint, metric)) is not None
    }
    branches: dict[str, list[tuple[str, int, float]]] = {}
    for checkpoint in sorted(checkpoints, key=lambda c: (c.spec.term, c.spec.step)):
        name, parent = checkpoint.metadata.name, checkpoint.spec.parent_ref
        if name not in points:
            continue
        if checkpoint.spec.branch not in branches:
            grown_from = points.get(parent.name) if parent else None
            branches[checkpoint.spec.branch] = [grown_from] if grown_from else []
        branches[checkpoint.spec.branch].append(points[name])
    ordered = sorted(branches.items(), key=lambda item: item[0] != MAIN)
    return [_line(branch, points_of) for branch, points_of in ordered]


def _line(branch: str, points: Sequence[tuple[str, int, float]]) -> CurveLine:
    names, steps, values = zip(*points, strict=True)
    return CurveLine(branch, names, steps, values)


def value_of(checkpoint: Checkpoint, metric: str) -> float | None:
    """The value of a metric of a checkpoint; None if it bears none of that name."""
    values = (m.value for m in checkpoint.status.metrics if m.name == metric)
    return next((decimal(value) for value in values), None)
