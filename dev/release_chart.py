"""Packages the chart with the images of a release: the same arguments give the same bytes.

``release_chart.py VERSION DATE DIRECTORY NAME=DIGEST... [--registry HOST/PATH]``
"""

from __future__ import annotations

import argparse
import gzip
import io
import re
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

CHART = Path(__file__).resolve().parents[1] / "charts" / "espalier"


def with_images(values: str, version: str, registry: str, digests: Mapping[str, str]) -> str:
    """The text of values.yaml with the digests, and with references where a registry is named."""
    for name, digest in digests.items():
        values = _filled(values, "imageDigests", name, digest)
        if registry:
            values = _filled(values, "images", name, f"{registry}/espalier/{name}:{version}")
    return values


def _filled(values: str, mapping: str, name: str, text: str) -> str:
    empty = re.compile(rf'^({mapping}:\n(?:  .*\n)*?  {name}: )""', re.MULTILINE)
    filled, count = empty.subn(rf'\g<1>"{text}"', values)
    if count != 1:
        sys.exit(f"error: values.yaml has no empty {mapping}.{name} to fill in.")
    return filled


def packaged(values: str, date: int) -> bytes:
    """The chart's archive, as helm reads it."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(CHART.rglob("*")):
            if path.is_file():
                content = values.encode() if path.name == "values.yaml" else path.read_bytes()
                entry = tarfile.TarInfo(f"espalier/{path.relative_to(CHART).as_posix()}")
                entry.size, entry.mtime = len(content), date
                tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(made.getvalue(), mtime=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version")
    parser.add_argument("date", type=int, help="seconds since 1970")
    parser.add_argument("directory", type=Path)
    parser.add_argument("digests", nargs="+", help="NAME=sha256:…")
    parser.add_argument("--registry", default="")
    told = parser.parse_args()
    digests = dict(one.split("=", 1) for one in told.digests)
    values = (CHART / "values.yaml").read_text(encoding="utf-8")
    text = with_images(values, told.version, told.registry, digests)
    (told.directory / f"espalier-{told.version}.tgz").write_bytes(packaged(text, told.date))


if __name__ == "__main__":
    main()
