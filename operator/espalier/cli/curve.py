"""Draws the curve of a metric over the steps of the tree, one line a branch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espalier.core.lineage.curve_lines import CurveLine

WIDTH, HEIGHT = 78, 20


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
