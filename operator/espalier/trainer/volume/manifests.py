"""Manifests: what a directory of the volume says that it holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from espalier.core.volume import MANIFEST, Kind, digest_of, directory_name
from espalier.unchanged import Noted


class DigestError(Exception):
    """A directory is missing, incomplete or not what its name says."""


@dataclass(frozen=True)
class Stored:
    """A complete directory: its digest, where it is and its manifest."""

    digest: str
    path: Path
    manifest: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        """The bytes of its files."""
        return sum(int(entry["size"]) for entry in self.manifest["files"].values())


@dataclass(frozen=True)
class Verified(Stored):
    """A directory whose every byte was hashed, and what it was noted as before that.

    Whoever loads from it looks again afterwards (``unchanged.end_if_changed``).
    """

    noted: Noted


def opened(path: Path, kind: Kind, digest: str) -> Stored:
    """The directory at a path, if its manifest has the digest and its files their sizes.

    Raises:
        DigestError: it is not there, or something else is.
    """
    try:
        text = (path / MANIFEST).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DigestError(f"{kind} {digest} is not on the volume ({error})") from error
    if digest_of(text) != digest:
        raise DigestError(f"the manifest of {kind} {digest} does not match its digest")
    manifest = _manifest(text)
    if manifest is None or (kind == "checkpoint" and not _is_checkpoint(manifest)):
        raise DigestError(f"the manifest of {kind} {digest} is none of ours")
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry["size"]:
            raise DigestError(f"{name} of {kind} {digest} is missing or truncated")
    return Stored(digest, path, manifest)


def model_of(path: Path) -> str:
    """The model that the checkpoint at a path says it is of; empty if it says none."""
    return _model(_text(path))


def named_model(path: Path) -> str:
    """Like ``model_of``, of a directory that is named after the digest of what it says."""
    text = _text(path)
    return _model(text) if directory_name(digest_of(text)) == path.name else ""


def _text(path: Path) -> str:
    try:
        return (path / MANIFEST).read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _model(text: str) -> str:
    manifest = _manifest(text)
    return manifest["model"] if manifest is not None and _is_checkpoint(manifest) else ""


def _manifest(text: str) -> dict[str, Any] | None:
    """A manifest whose files lie in its own directory; None if it is none.

    Its digest says that it is what was written, and nothing of who wrote it.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    files = found.get("files") if isinstance(found, dict) else None
    if not isinstance(files, dict) or not all(map(_is_inside, files)):
        return None
    entries = all(
        isinstance(entry, dict)
        and isinstance(entry.get("size"), int)
        and isinstance(entry.get("sha256"), str)
        for entry in files.values()
    )
    return found if entries else None


def _is_checkpoint(manifest: dict[str, Any]) -> bool:
    named = all(isinstance(manifest.get(field), str) for field in ("model", "base"))
    return named and isinstance(manifest.get("step"), int)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts
