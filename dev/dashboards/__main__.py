"""Writes the dashboards into the chart: ``python -m dev.dashboards``. A test fails on drift."""

from __future__ import annotations

import json
from pathlib import Path

from dev.dashboards.boards import DASHBOARDS
from dev.dashboards.panels import Dashboard

FILES = Path(__file__).resolve().parents[2] / "charts" / "espalier" / "files" / "dashboards"


def text(dashboard: Dashboard) -> str:
    return json.dumps(dashboard.json(), indent=1) + "\n"


def main() -> None:
    FILES.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        (FILES / f"{dashboard.name}.json").write_text(text(dashboard))


if __name__ == "__main__":
    main()
