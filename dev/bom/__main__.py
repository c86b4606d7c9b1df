"""Writes an image's CycloneDX document, for dev/release.sh: ``python -m dev.bom ROOT …``.

Ends with 1, and writes nothing, where a package may not be shipped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dev.bom.document import Image, document
from dev.bom.licences import problem_of
from dev.bom.packages import debian_packages, npm_packages, python_packages, read_hashes

HASHES = Path(__file__).resolve().parents[2] / "constraints.hashes.txt"
# Where an image has the console's page, if it has it.
CONSOLE = Path("app/espalier/gateway/console/built")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="the image's root file system")
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--digest", required=True, help="of the image's manifest: sha256:…")
    parser.add_argument("--made", required=True, type=int, help="seconds since 1970")
    parser.add_argument("--output", required=True, type=Path)
    told = parser.parse_args()
    hashes = read_hashes(HASHES)
    directories = [*told.root.glob("opt/venv/lib/python3*/site-packages"), told.root / "app"]
    python = [package for one in directories for package in python_packages(one, hashes)]
    has_console = (told.root / CONSOLE).is_dir()
    npm = npm_packages(bundled=True) if has_console else []
    problems = [
        problem
        for package in [*python, *npm]
        if (problem := problem_of(package.name, " AND ".join(package.licences) or None))
    ]
    if problems:
        sys.exit("\n".join(f"error: {problem}." for problem in problems))
    image = Image(told.name, told.version, told.digest, told.made)
    told.output.write_text(document(image, python, npm, debian_packages(told.root)))


if __name__ == "__main__":
    main()
