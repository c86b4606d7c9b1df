"""The page of the chart's values: the file itself, whose comments say what each value does."""

from __future__ import annotations

from pathlib import Path

from dev.docs.markdown import page

VALUES = Path(__file__).resolve().parents[2] / "charts" / "espalier" / "values.yaml"


def pages() -> dict[str, str]:
    """The page by file name."""
    return {
        "chart.md": page(
            "Values of the chart",
            "charts/espalier/values.yaml",
            "Every value with its default. How to install: "
            "[installing](../operations/installing.md).",
            f"```yaml\n{VALUES.read_text().strip()}\n```",
        )
    }
