"""Says in which files two OCI archives of one image differ: ``layer_differences.py ONE TWO``."""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def layers(archive: Path) -> list[dict[str, str]]:
    """Each layer's files in their order, with all that is said of each and its content's hash."""
    with tarfile.open(archive) as tar:

        def blob(digest: str) -> IO[bytes]:
            content = tar.extractfile(f"./blobs/sha256/{digest.removeprefix('sha256:')}")
            assert content is not None
            return content

        index = tar.extractfile("./index.json")
        assert index is not None
        manifest = json.load(blob(json.load(index)["manifests"][0]["digest"]))
        return [dict(_files(blob(layer["digest"]))) for layer in manifest["layers"]]


def _files(layer: IO[bytes]) -> Iterator[tuple[str, str]]:
    with tarfile.open(fileobj=layer, mode="r|gz") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None
            hashed = hashlib.file_digest(content, "sha256").hexdigest() if content else ""
            about = (member.mode, member.uid, member.gid, member.mtime, member.linkname)
            yield member.name, f"{about} {hashed}"


def differences(one: Path, two: Path) -> Iterator[str]:
    """A line for each file that is missing in one of them, or is another."""
    first, second = layers(one), layers(two)
    if len(first) != len(second):
        yield f"{len(first)} layers, and {len(second)}"
    for number, (old, new) in enumerate(zip(first, second, strict=False)):
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                yield f"layer {number}: {name}"
        if old == new and list(old) != list(new):
            yield f"layer {number}: the order of its files"


def main() -> None:
    for line in differences(Path(sys.argv[1]), Path(sys.argv[2])):
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
