"""The site has every page, and its links stay inside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dev.docs.site_source import DOCS, OF_ROOT, ROOT, rewritten

CONFIGURATION = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def listed(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for entry in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from listed(entry)


def test_the_navigation_lists_every_page_once() -> None:
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(listed(CONFIGURATION["nav"])) == sorted([*pages, *OF_ROOT.values()])


@pytest.mark.parametrize(
    ("page", "link", "there"),
    [
        ("docs/index.md", "[a](guides/head.md#states)", "[a](guides/head.md#states)"),
        ("docs/guides/head.md", "[a](../concepts/index.md)", "[a](../concepts/index.md)"),
        ("docs/guides/head.md", "![a](../images/tree.svg)", "![a](../images/tree.svg)"),
        ("docs/guides/head.md", "[a](#states)", "[a](#states)"),
        ("docs/guides/head.md", "[a](https://example.com/b.md)", "[a](https://example.com/b.md)"),
        # Not in the site: the path is all that can be said.
        ("docs/guides/head.md", "[full](../../examples/full)", "full (`examples/full`)"),
        # From and to the pages of the root, which lie in project/.
        (
            "docs/developing/index.md",
            "[c](../../CONTRIBUTING.md)",
            "[c](../project/contributing.md)",
        ),
        ("SECURITY.md", "[v](docs/reference/versions.md)", "[v](../reference/versions.md)"),
        ("CONTRIBUTING.md", "[c](CHANGELOG.md)", "[c](changelog.md)"),
    ],
)
def test_a_link_leads_to_the_same_page_in_the_site(page: str, link: str, there: str) -> None:
    assert rewritten(ROOT / page, f"See {link}.") == f"See {there}."


def test_a_file_that_is_not_a_page_is_refused() -> None:
    with pytest.raises(ValueError, match="not a page of the site"):
        rewritten(ROOT / "README.md", "")


def test_the_generator_is_pinned() -> None:
    lines = (DOCS / "constraints.txt").read_text().splitlines()
    packages = [line for line in lines if not line.startswith(("#", "    --hash=sha256:"))]
    assert any(line.startswith("zensical==") for line in packages)
    assert [line for line in packages if not line.endswith(" \\") or "==" not in line] == []


def test_what_the_configuration_names_exists() -> None:
    assert [x for x in CONFIGURATION["extra_css"] if not Path(DOCS / x).exists()] == []
