"""A dashboard as rows of panels, and as the JSON that Grafana imports."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WIDTH = 24
HEIGHT = 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Query:
    """An expression of PromQL and the name of its lines, in which {{label}} stands for a label."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A graph. ``unit`` is Grafana's name of it; ``meaning`` is shown when one asks."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    meaning: str = ""
    stacked: bool = False


@dataclass(frozen=True)
class Row:
    """Panels side by side, under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """What a reader chooses: the values of a label of a series."""

    name: str
    label: str
    series: str


@dataclass(frozen=True)
class Dashboard:
    """``name`` is that of its file and ConfigMap."""

    name: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]

    def expressions(self, chosen: Mapping[str, str], interval: str) -> list[tuple[str, str]]:
        """Panel and expression of every query, as Grafana asks it for these values."""
        values = {**chosen, "__rate_interval": interval}
        return [
            (panel.title, re.sub(r"\$(\w+)", lambda found: values[found[1]], query.expression))
            for row in self.rows
            for panel in row.panels
            for query in panel.queries
        ]

    def json(self) -> dict[str, Any]:
        """As Grafana imports it."""
        panels: list[dict[str, Any]] = []
        for row in self.rows:
            top = (HEIGHT + 1) * sum(panel["type"] == "row" for panel in panels)
            panels.append(_heading(len(panels) + 1, row.title, top))
            for place, panel in enumerate(row.panels):
                width = WIDTH // len(row.panels)
                grid = {"x": place * width, "y": top + 1, "w": width, "h": HEIGHT}
                panels.append(_graph(len(panels) + 1, panel, grid))
        return {
            "uid": f"espalier-{self.name}",
            "title": self.title,
            "description": self.description,
            "tags": ["espalier"],
            "schemaVersion": 39,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "templating": {"list": [_DATASOURCE, *map(_variable, self.variables)]},
            "panels": panels,
        }


_DATASOURCE = {
    "name": "datasource",
    "label": "Data source",
    "type": "datasource",
    "query": "prometheus",
}


def _variable(variable: Variable) -> dict[str, Any]:
    query = f"label_values({variable.series}, {variable.label})"
    return {
        "name": variable.name,
        "label": variable.label.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": variable.name},
        "refresh": 2,
        "sort": 1,
    }


def _heading(number: int, title: str, top: int) -> dict[str, Any]:
    grid = {"x": 0, "y": top, "w": WIDTH, "h": 1}
    return {"id": number, "type": "row", "title": title, "gridPos": grid, "panels": []}


def _graph(number: int, panel: Panel, grid: dict[str, int]) -> dict[str, Any]:
    drawn = {"lineWidth": 1, "fillOpacity": 20 if panel.stacked else 5, "spanNulls": True}
    stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.meaning,
        "datasource": SOURCE,
        "gridPos": grid,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": {**drawn, "stacking": stacking}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
            }
            for place, query in enumerate(panel.queries)
        ],
    }
