"""Copies the pages to where the site is built from: ``python dev/docs/site_source.py DIRECTORY``.

A page of the repository links to files beside docs/, such as examples. The site has none of these,
so there such a link becomes the path as code. CONTRIBUTING, CHANGELOG and SECURITY become pages.
Needs the standard library alone: the site's own environment runs it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")
# Pages of the repository's root, by their place in the site.
OF_ROOT = {
    ROOT / "CONTRIBUTING.md": "project/contributing.md",
    ROOT / "CHANGELOG.md": "project/changelog.md",
    ROOT / "SECURITY.md": "project/security.md",
}


def place(path: Path) -> str | None:
    """Where a file of the repository lies in the site, or None if it is not there."""
    if path in OF_ROOT:
        return OF_ROOT[path]
    return path.relative_to(DOCS).as_posix() if path.is_relative_to(DOCS) else None


def rewritten(page: Path, text: str) -> str:
    """The text of a page with its links as they are in the site."""
    own = place(page)
    if own is None:
        raise ValueError(f"{page} is not a page of the site")
    return LINK.sub(_link(page, Path(own).parent), text)


def _link(page: Path, folder: Path) -> Callable[[re.Match[str]], str]:
    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target:
            return match[0]
        path = Path(os.path.normpath(page.parent / target))
        there = place(path)
        if there is None:
            return f"{text} (`{path.relative_to(ROOT)}`)"
        return f"[{text}]({os.path.relpath(there, folder)}{anchor})"

    return link


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python dev/docs/site_source.py DIRECTORY")
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    for path in [*DOCS.rglob("*"), *OF_ROOT]:
        there = place(path)
        if there is None or path.is_dir() or path.name == "constraints.txt":
            continue
        (target / there).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            (target / there).write_text(rewritten(path, path.read_text()))
        else:
            shutil.copy(path, target / there)


if __name__ == "__main__":
    main()
