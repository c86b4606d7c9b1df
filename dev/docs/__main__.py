"""Writes the generated pages of docs/, and the types of the console's page: ``python -m dev.docs``.

A test fails when they are old.
"""

from __future__ import annotations

from pathlib import Path

from dev.docs import (
    api_pages,
    chart_page,
    cli_page,
    console_page,
    layout_page,
    licences_page,
    metrics_page,
)

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TYPES = ROOT / "operator/console/src/types.ts"


def pages() -> dict[str, str]:
    """Every generated page, by its path below docs/."""
    return {
        **{f"reference/api/{name}": text for name, text in api_pages.pages().items()},
        **{f"reference/{name}": text for name, text in cli_page.pages().items()},
        **{f"reference/{name}": text for name, text in metrics_page.pages().items()},
        **{f"reference/{name}": text for name, text in console_page.pages().items()},
        **{f"reference/{name}": text for name, text in chart_page.pages().items()},
        **{f"reference/{name}": text for name, text in licences_page.pages().items()},
        **{f"developing/{name}": text for name, text in layout_page.pages().items()},
    }


def main() -> None:
    for name, text in pages().items():
        path = DOCS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    TYPES.write_text(console_page.typescript())


if __name__ == "__main__":
    main()
