"""The curve of a metric over the steps of the tree, one line a branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espalier.api.checkpoint import Checkpoint
from espalier.api.meta import decimal
from espalier.core.names import MAIN

WIDTH, HEIGHT = 78, 20


@dataclass(frozen=True)
class CurveLine:
    """A branch: steps and values of equal length. It starts at the point it grew from."""

    branch: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


def lines(checkpoints: Sequence[Checkpoint], metric: str) -> list[CurveLine]:
    """The branches that have the metric, main first, then in the order that they grew."""
    points = {
        checkpoint.metadata.name: (checkpoint.spec.step, value)
        for checkpoint in checkpoints
        if (value := _value(checkpoint, metric)) is not None
    }
    branches: dict[str, list[tuple[int, float]]] = {}
    for checkpoint in sorted(checkpoints, key=lambda c: (c.spec.term, c.spec.step)):
        name, parent = checkpoint.metadata.name, checkpoint.spec.parent_ref
        if name not in points:
            continue
        if checkpoint.spec.branch not in branches:
            grown_from = points.get(parent.name) if parent else None
            branches[checkpoint.spec.branch] = [grown_from] if grown_from else []
        branches[checkpoint.spec.branch].append(points[name])
    ordered = sorted(branches.items(), key=lambda item: item[0] != MAIN)
    return [
        CurveLine(name, tuple(step for step, _ in line), tuple(value for _, value in line))
        for name, line in ordered
    ]


def _value(checkpoint: Checkpoint, metric: str) -> float | None:
    values = (m.value for m in checkpoint.status.metrics if m.name == metric)
    return next((decimal(value) for value in values), None)


def in_terminal(branches: Sequence[CurveLine], title: str) -> str:
    """The curve as text."""
    # Imported here, as matplotlib below: the other commands start without it.
    import plotext  # noqa: PLC0415

    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(WIDTH, HEIGHT)
    for line in branches:
        signal = figure.signal(line.steps, line.values)
        signal.lines()
        signal.label(line.branch)
        figure.draw(signal)
    figure.title(title)
    figure.label("step")
    return str(plotext.uncolorize(figure.build().string()))


def as_png(branches: Sequence[CurveLine], title: str, path: Path) -> None:
    """The curve as a picture."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("agg")
    from matplotlib import pyplot  # noqa: PLC0415
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for line in branches:
        axes.plot(line.steps, line.values, marker="o", markersize=3, label=line.branch)
    axes.set(title=title, xlabel="step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
