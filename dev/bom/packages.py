"""The packages of an image, read from its root file system without running anything of it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dev.bom.licences import licence_of

LOCKFILE = Path(__file__).resolve().parents[2] / "operator" / "console" / "package-lock.json"
_PIN = re.compile(r"([a-z0-9][a-z0-9._-]*)==(\S+)")


@dataclass(frozen=True)
class Package:
    """One package, as its own metadata tells it."""

    name: str
    version: str
    licences: tuple[str, ...]
    """One SPDX expression of a package of PyPI or npm, Debian's short names of one of Debian."""
    sha256: tuple[str, ...] = ()
    """Of the files that PyPI has of this version; what is installed is one of them."""
    sha512: str = ""
    """Of the one file that npm has of this version."""
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


def npm_packages(*, bundled: bool) -> list[Package]:
    """What is bundled into the console's page, or what builds and tests it, by its lockfile.

    Of a package that comes as one for each platform, the one that names them all.
    """
    found = []
    for path, told in json.loads(LOCKFILE.read_text())["packages"].items():
        name = path.rpartition("node_modules/")[2]
        if not name or told.get("optional") or bool(told.get("dev")) is bundled:
            continue
        licences = (told["license"],) if "license" in told else ()
        sha512 = base64.b64decode(told["integrity"].removeprefix("sha512-")).hex()
        found.append(Package(name, told["version"], licences, sha512=sha512))
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
