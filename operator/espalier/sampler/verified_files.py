"""Files of the volume, read only as what their manifests list."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any

from espalier.api.wire.problem import Problem
from espalier.core.volume import MANIFEST, canonical_json, digest_of, directory_name, sha256_of
from espalier.unchanged import Noted, note

_COPIED_AT_ONCE = 1 << 20


class StoreError(Exception):
    """Something on the volume is missing, altered or unfit; ``problem`` is for the caller."""

    def __init__(self, reason: str, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.problem = Problem(reason=reason, detail=detail, remedy=remedy)


def read_manifest(directory: Path, kind: str) -> dict[str, Any]:
    """The manifest of a base or checkpoint whose digest is the directory's name."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise StoreError(
            "NotCommitted", f"{directory.name} has no {MANIFEST}", "wait for its commit to finish"
        ) from None
    except (OSError, ValueError) as error:
        raise StoreError(
            "Unreadable", f"{MANIFEST} of {directory.name}: {error}", "restore the file"
        ) from error
    digest = digest_of(canonical_json(manifest))
    if not isinstance(manifest, dict) or directory_name(digest) != directory.name:
        raise StoreError(
            "DigestMismatch",
            f"the manifest of {directory.name} has digest {digest}",
            "the manifest was altered: restore or delete the directory",
        )
    if manifest.get("kind") != kind:
        raise StoreError(
            "WrongKind",
            f"{directory.name} is a {manifest.get('kind')}, not a {kind}",
            f"name a {kind}",
        )
    return manifest


def noted_before(directory: Path) -> Noted:
    """What a directory is noted as before it is hashed; raises StoreError where that fails."""
    try:
        return note(directory)
    except OSError as error:
        raise StoreError(
            "Unreadable", f"{directory.name}: {error}", "check node and storage"
        ) from error


def refuse_strange(noted: Noted) -> None:
    """Raise StoreError where a link, or what else is no file, stands among files."""
    if noted.strange:
        raise StoreError(
            "Unreadable",
            noted.strange,
            "restore the file from a copy, or delete the directory and import or train it again",
        )


def verify_file(directory: Path, name: str, manifest: dict[str, Any]) -> None:
    """Raise StoreError unless the file is the one that the manifest lists."""
    with _listed(directory, name, manifest) as (file, expected):
        found = sha256_of(file)
    _compare(directory, name, found, expected)


def copy_verified(
    directory: Path, name: str, manifest: dict[str, Any], target: BufferedRandom
) -> None:
    """Copy the file to ``target``; raise StoreError unless the copy is what the manifest lists.

    The file is read once, so nobody can change it between the copy and the hash, and no further
    than it should be long: a copy in memory is as large as its manifest says, whatever lies there.
    """
    hashed = hashlib.sha256()
    with _listed(directory, name, manifest) as (file, expected):
        # One byte more tells that a file is longer.
        left = manifest["files"][name].get("size", 0) + 1
        while left and (chunk := file.read(min(left, _COPIED_AT_ONCE))):
            hashed.update(chunk)
            target.write(chunk)
            left -= len(chunk)
    target.flush()
    _compare(directory, name, hashed.hexdigest(), expected)


def verified_lines(directory: Path, name: str, manifest: dict[str, Any]) -> Iterator[bytes]:
    """The file's lines; raises StoreError after the last one unless they were what is listed."""
    hashed = hashlib.sha256()
    with _listed(directory, name, manifest) as (file, expected):
        for line in file:
            hashed.update(line)
            yield line
    _compare(directory, name, hashed.hexdigest(), expected)


@contextmanager
def _listed(
    directory: Path, name: str, manifest: dict[str, Any]
) -> Iterator[tuple[BufferedReader, str]]:
    """A file that the manifest lists, open to be read, and the SHA-256 that it must have."""
    entry = manifest.get("files", {}).get(name)
    if entry is None:
        raise StoreError(
            "FileNotListed",
            f"the manifest of {directory.name} lists no {name}",
            "commit the adapter again with this file",
        )
    try:
        with (directory / name).open("rb") as file:
            yield file, entry.get("sha256")
    except OSError as error:
        raise StoreError(
            "Unreadable",
            f"{name} of {directory.name}: {error.strerror}",
            "files of a commit are mode 0644, directories 0755",
        ) from error


def _compare(directory: Path, name: str, found: str, expected: str) -> None:
    if found != expected:
        raise StoreError(
            "FileAltered",
            f"{name} of {directory.name} does not match its manifest",
            "restore the file from a copy, or delete the directory and import or train it again",
        )
