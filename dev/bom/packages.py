"""The packages of an image, read from its root file system without running anything of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dev.bom.licences import licence_of

_PIN = re.compile(r"([a-z0-9][a-z0-9._-]*)==(\S+)")


@dataclass(frozen=True)
class Package:
    """One package, as its own metadata tells it."""

    name: str
    version: str
    licences: tuple[str, ...]
    """One SPDX expression of a Python package, Debian's short names of a Debian package."""
    sha256: tuple[str, ...] = ()
    """Of the files that PyPI has of this version; what is installed is one of them."""
    architecture: str = ""


def python_packages(directory: Path, hashes: Mapping[str, tuple[str, ...]]) -> list[Package]:
    """The distributions of a site-packages directory, sorted by name."""
    found = []
    for distribution in metadata.distributions(path=[str(directory)]):
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        licence = licence_of(distribution.metadata)
        known = hashes.get(f"{name}=={distribution.version}", ())
        found.append(Package(name, distribution.version, (licence,) if licence else (), known))
    return sorted(found, key=lambda package: package.name)


def debian_packages(root: Path) -> list[Package]:
    """What dpkg has installed in a root file system, sorted by name."""
    status = root / "var" / "lib" / "dpkg" / "status"
    found = []
    for paragraph in status.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(re.findall(r"^(\S+): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status") == "install ok installed":
            copyright_file = root / "usr" / "share" / "doc" / fields["Package"] / "copyright"
            found.append(
                Package(
                    fields["Package"],
                    fields["Version"],
                    tuple(_debian_licences(copyright_file)),
                    architecture=fields["Architecture"],
                )
            )
    return sorted(found, key=lambda package: package.name)


def read_hashes(path: Path) -> dict[str, tuple[str, ...]]:
    """``name==version`` with its sha256 sums, from a file such as constraints.hashes.txt."""
    found: dict[str, tuple[str, ...]] = {}
    pin = ""
    for line in path.read_text().splitlines():
        if match := _PIN.match(line):
            pin = match[0]
            found[pin] = ()
        elif "--hash=sha256:" in line:
            found[pin] += (line.split("sha256:")[1].split()[0],)
    return found


def _debian_licences(file: Path) -> Iterator[str]:
    """The short names in a machine-readable copyright file; none where it is prose or missing."""
    if file.is_file():
        text = file.read_text(encoding="utf-8", errors="replace")
        yield from sorted(set(re.findall(r"^License: *(\S.*?) *$", text, re.MULTILINE)))
