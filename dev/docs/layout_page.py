"""The page of the layout: every folder of the package with the first line of its docstring."""

from __future__ import annotations

import ast
from pathlib import Path

from dev.docs.markdown import code, page, table

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "operator" / "espalier"
# Folders outside of the package, which no docstring describes.
OTHER = {
    "bench": "benchmarks, and their results by date",
    "charts/espalier": "the Helm chart",
    "crds": "the CRDs, generated from `operator/espalier/api`",
    "dev": "the scripts behind `make`, the local cluster, and the generators of these pages",
    "docs": "this documentation",
    "examples": "manifests and scripts to copy",
    "gitops": "what Argo CD, Flux and kustomize need to know about our kinds",
    "images": "the container images",
    "packaging": "what krew installs",
    "tests": "the tests, in folders named after the rooms; [tests](tests.md)",
}


def pages() -> dict[str, str]:
    """The page by file name."""
    rooms = [(_link(room), first_line(room)) for room in _rooms()]
    return {
        "layout.md": page(
            "Where things are",
            "the docstrings of operator/espalier",
            "To change X, find its room here, then `ls` the folder: a file is named after its "
            "content. `make lint` checks which room may import which; the contracts are in "
            "`pyproject.toml`.",
            "## The package: `operator/espalier`",
            table(("room", "what is inside"), rooms),
            "## The rest of the repository",
            table(("folder", "what is inside"), ((code(n), text) for n, text in OTHER.items())),
        )
    }


def _rooms() -> list[Path]:
    return sorted(path.parent for path in PACKAGE.rglob("__init__.py"))


def _link(room: Path) -> str:
    name = room.relative_to(PACKAGE).as_posix()
    return code(f"{name}/") if name != "." else code("espalier/")


def first_line(room: Path) -> str:
    """The first line of a package's docstring."""
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
    if not docstring:
        raise SystemExit(
            f"{room}/__init__.py has no docstring: say in a line what the room is for."
        )
    return docstring.splitlines()[0]
