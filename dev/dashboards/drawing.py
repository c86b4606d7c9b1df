"""Draws a dashboard's panels as one SVG, from a Prometheus: the pictures of docs/images.

    python -m dev.dashboards.drawing URL MODEL NAMESPACE START END

Grafana is not needed; its own pictures differ in style, not in what is drawn.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from dev.apiserver import ROOT
from dev.dashboards.boards import DASHBOARDS
from dev.dashboards.panels import Dashboard, Panel, Query
from dev.monitoring.prometheus import Prometheus

mpl.use("svg")
from matplotlib import pyplot
from matplotlib.ticker import EngFormatter, PercentFormatter

IMAGES = ROOT / "docs" / "images"
POINTS = 60
UNITS: dict[str, Any] = {
    "bytes": EngFormatter("B"),
    "s": EngFormatter("s"),
    "percentunit": PercentFormatter(1.0),
}


class Drawing:
    """Draws dashboards of a span of time, for what a reader would choose."""

    def __init__(
        self, prometheus: Prometheus, chosen: dict[str, str], span: tuple[float, float]
    ) -> None:
        self._prometheus = prometheus
        self._chosen = chosen
        self._span = span

    def draw(self, dashboard: Dashboard, path: Path) -> None:
        """Writes the SVG: a row of panels under each other row."""
        columns = max(len(row.panels) for row in dashboard.rows)
        pyplot.rcParams.update(
            {"font.size": 7, "svg.hashsalt": "espalier", "svg.fonttype": "none", "axes.grid": True}
        )
        figure, axes = pyplot.subplots(
            len(dashboard.rows),
            columns,
            figsize=(4 * columns, 2.4 * len(dashboard.rows)),
            layout="constrained",
            squeeze=False,
        )
        figure.suptitle(dashboard.title)
        for line, row in zip(axes, dashboard.rows, strict=True):
            for place, axis in enumerate(line):
                if place < len(row.panels):
                    self._panel(axis, row.panels[place])
                else:
                    axis.set_visible(False)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)

    def _panel(self, axis: Any, panel: Panel) -> None:
        axis.set_title(panel.title)
        if formatter := UNITS.get(panel.unit):
            axis.yaxis.set_major_formatter(formatter)
        for query in panel.queries:
            for series in self._found(query):
                points = [(float(t), float(v)) for t, v in series["values"] if v != "NaN"]
                if points:
                    minutes = [(t - self._span[0]) / 60 for t, _ in points]
                    legend = re.sub(
                        r"\{\{(\w+)\}\}",
                        lambda match, labels=series["metric"]: labels.get(match[1], ""),
                        query.legend,
                    )
                    axis.plot(minutes, [v for _, v in points], linewidth=0.8, label=legend)
        axis.set_ylim(bottom=0)
        axis.set_xlim(0, (self._span[1] - self._span[0]) / 60)
        axis.set_xlabel("minutes")
        if handles := axis.get_legend_handles_labels()[0]:
            axis.legend(handles=handles[:7], fontsize=5, loc="best")

    def _found(self, query: Query) -> list[dict[str, Any]]:
        values = {**self._chosen, "__rate_interval": "60s"}
        expression = re.sub(r"\$(\w+)", lambda found: values[found[1]], query.expression)
        start, end = self._span
        return self._prometheus.range(expression, start, end, max(1.0, (end - start) / POINTS))


def main() -> None:
    if len(sys.argv) != 6:
        sys.exit("usage: python -m dev.dashboards.drawing URL MODEL NAMESPACE START END")
    url, model, namespace, start, end = sys.argv[1:]
    chosen = {"model": model, "namespace": namespace}
    drawing = Drawing(Prometheus(url), chosen, (float(start), float(end)))
    for dashboard in DASHBOARDS:
        drawing.draw(dashboard, IMAGES / f"dashboard-{dashboard.name}.svg")


if __name__ == "__main__":
    main()
