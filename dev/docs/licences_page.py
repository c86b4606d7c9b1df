"""The page of licences: what we ship and test with, as the packages' own metadata says."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from dev.bom.licences import licence_of, named
from dev.bom.packages import npm_packages
from dev.docs.markdown import page, table
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
_PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", re.MULTILINE)


def images() -> dict[str, list[str]]:
    """The extras that each part installs, in the order of the page."""
    folder = ROOT / "images"
    parts = {path.parent.name: path.read_text().split() for path in folder.glob("*/extras")}
    return {
        **dict(sorted(parts.items())),
        "command line": ["cli"],
        "one machine": ["local", "model"],
    }


def used_in() -> dict[str, list[str]]:
    """The parts that each package is in, by its name; a package of tests alone is in none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, list[str]] = {}
    for part, extras in images().items():
        asked = [*project["dependencies"]]
        for extra in extras:
            asked += project["optional-dependencies"][extra]
        for name in _closure(asked):
            found.setdefault(name, []).append(part)
    return found


def _closure(requirements: list[str]) -> set[str]:
    """What requirements need, by the metadata of what is installed here."""
    found: set[tuple[str, str]] = set()
    waiting = [(Requirement(one), "") for one in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for chosen in {"", *requirement.extras}:
            if (name, chosen) in found:
                continue
            try:
                needs = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                # dev/overrides.txt leaves it out.
                continue
            found.add((name, chosen))
            waiting += [(Requirement(one), chosen) for one in needs]
    return {name for name, _ in found}


def rows() -> tuple[list[list[str]], list[str]]:
    """A row for each pinned package that is installed here, and the names of the others."""
    parts = used_in()
    found, others = [], []
    for name, version in _PIN.findall((ROOT / "constraints.txt").read_text()):
        try:
            licence = licence_of(metadata.metadata(name))
        except metadata.PackageNotFoundError:
            others.append(name)
            continue
        found.append([name, version, licence or "", ", ".join(parts.get(name, ["tests"]))])
    return found, others


def console_rows() -> list[list[str]]:
    """A row for each npm package that the console's page is built of, or with."""
    parts = {"the page": True, "its build and tests": False}
    return [
        [package.name, package.version, " AND ".join(package.licences), part]
        for part, bundled in parts.items()
        for package in npm_packages(bundled=bundled)
    ]


def pages() -> dict[str, str]:
    """The page by file name."""
    found, others = rows()
    return {
        "licences.md": page(
            "Licences",
            "the metadata of the packages in constraints.txt and the console's package-lock.json",
            "Espalier is under Apache-2.0. What it is made of, and where that is; `engine` is the "
            "layer of trainer and rollout. [Verifying a release](../operations/releases.md) says "
            "where each image's own list is, with Debian's packages.",
            table(["package", "version", "licence", "in"], found),
            "## Of the console",
            "npm's packages. Those of the page are bundled into it, and every image has it; "
            "`/console/licenses.txt` of the gateway has their terms.",
            table(["package", "version", "licence", "in"], console_rows()),
            "## Not in the list of accepted licences",
            "A package under any other licence than those in `dev/bom/licences.py` is refused by a "
            "test and by `make release`, except under these:",
            table(["licence", "why it may be shipped"], sorted(named().accepted.items())),
            "## Of GPU images alone",
            "Pinned, and not installed where this page is generated: `FORM=gpu make release` reads "
            "their licences in the image, and refuses them by the same rule.",
            ", ".join(others) + ".",
        )
    }
