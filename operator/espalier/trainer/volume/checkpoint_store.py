"""Writes and reads the immutable, content-addressed directories of the volume (``core.volume``).

A directory without ``.tmp-`` in front is complete: it was renamed after all its files, the manifest
last, were on disk.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.core import volume
from espalier.core.volume import FOLDERS, MANIFEST, Kind, canonical_json, digest_named, digest_of
from espalier.trainer.problems import CommandError, volume_problem

logger = logging.getLogger(__name__)

STAGING = ".tmp-"
NOTHING_PROMISED: Mapping[str, str] = {}


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
        """Bytes of its files."""
        return sum(int(entry["size"]) for entry in self.manifest["files"].values())


class CheckpointStore:
    """Writes the volume. ``owner`` marks the staging directories of this process."""

    def __init__(self, root: Path, owner: str) -> None:
        self._root = root
        self._owner = owner

    @property
    def root(self) -> Path:
        """Where the volume is mounted."""
        return self._root

    def model_directory(self, model: str) -> Path:
        """Where a model's command log lives; made if absent."""
        path = self.model_path(model)
        make_directory(path)
        return path

    def model_path(self, model: str) -> Path:
        """Where a model's command log lives, if it has one."""
        return self._root / "models" / model

    def download(self, model: str, name: str) -> Path:
        """Where a model's download lies until it is whole; what it left of others is removed."""
        folder = self._root / "downloads" / (model or "by-hand")
        make_directory(folder)
        for other in folder.iterdir():
            if other.name != name:
                shutil.rmtree(other, ignore_errors=True)
        return folder / name

    def discard_download(self, path: Path) -> None:
        """Removes a download, and its model's folder if that was the last in it."""
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.parent.rmdir()

    @contextmanager
    def staging(self, kind: Kind) -> Iterator[Path]:
        """An empty directory to fill and ``commit``; removed when the block ends without that.

        Raises VolumeFull, VolumeReadOnly or VolumeFailing (507) anywhere in the block.
        """
        folder = self._root / FOLDERS[kind]
        path = folder / f"{STAGING}{uuid.uuid4().hex}.{self._owner}"
        with volume_written(self._root):
            try:
                make_directory(folder)
                path.mkdir(mode=0o755)
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)

    def commit(
        self,
        kind: Kind,
        staged: Path,
        metadata: dict[str, Any],
        promised: Mapping[str, str] = NOTHING_PROMISED,
    ) -> tuple[Stored, bool]:
        """Makes a staged directory durable under its digest; False if it was there already.

        ``promised`` are SHA-256 of files as their source gives them: DigestError if one differs.
        """
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(p for p in staged.rglob("*") if p.is_file()):
            path.chmod(0o644)
            sync(path)
            files[path.relative_to(staged).as_posix()] = {
                "sha256": sha256_of(path),
                "size": path.stat().st_size,
            }
        for name, digest in promised.items():
            if name in files and files[name]["sha256"] != digest:
                raise DigestError(f"{name} is not what its source promises: its SHA-256 differs")
        for directory in [p for p in staged.rglob("*") if p.is_dir()]:
            directory.chmod(0o755)
            sync(directory)
        manifest = {"kind": kind, "files": files, **metadata}
        make_directory(self._root / FOLDERS[kind])
        text = canonical_json(manifest)
        digest = digest_of(text)
        (staged / MANIFEST).write_text(text)
        (staged / MANIFEST).chmod(0o644)
        sync(staged / MANIFEST)
        staged.chmod(0o755)
        sync(staged)
        final = self._path(kind, digest)
        try:
            staged.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return self.open(kind, digest), False
        sync(final.parent)
        return Stored(digest, final, manifest), True

    def open(self, kind: Kind, digest: str) -> Stored:
        """A directory by digest: manifest and sizes are checked; raises DigestError."""
        path = self._path(kind, digest)
        try:
            text = (path / MANIFEST).read_text()
        except OSError as error:
            raise DigestError(f"{kind} {digest} is not on the volume ({error})") from error
        if digest_of(text) != digest:
            raise DigestError(f"the manifest of {kind} {digest} does not match its digest")
        manifest = json.loads(text)
        for name, entry in manifest["files"].items():
            file = path / name
            if not file.is_file() or file.stat().st_size != entry["size"]:
                raise DigestError(f"{name} of {kind} {digest} is missing or truncated")
        return Stored(digest, path, manifest)

    def verify(self, kind: Kind, digest: str) -> Stored:
        """Like ``open``, and reads every byte against its SHA-256."""
        stored = self.open(kind, digest)
        for name, entry in stored.manifest["files"].items():
            if sha256_of(stored.path / name) != entry["sha256"]:
                raise DigestError(f"{name} of {kind} {digest} is corrupt")
        return stored

    def checkpoints(self, model: str = "") -> Iterator[Stored]:
        """Every readable checkpoint of a model, or of all."""
        for path in sorted((self._root / FOLDERS["checkpoint"]).glob("sha256-*")):
            try:
                stored = self.open("checkpoint", digest_named(path.name))
            except DigestError:
                # Someone else's damage must not keep this model from starting.
                logger.warning("skipping an unreadable checkpoint", exc_info=True)
                continue
            if model in ("", stored.manifest["model"]):
                yield stored

    def survey(self) -> Iterator[tuple[str, Stored | DigestError]]:
        """Whatever lies among the checkpoints, by the name of its directory."""
        for path in sorted((self._root / FOLDERS["checkpoint"]).glob("*")):
            found: Stored | DigestError
            try:
                if path.name.startswith(STAGING):
                    found = DigestError("it was never finished: its writer died")
                else:
                    found = self.open("checkpoint", digest_named(path.name))
            except DigestError as error:
                found = error
            yield path.name, found

    def discard(self, stored: Stored) -> None:
        """Removes a checkpoint that nobody was told about; a crash leaves it whole or staging."""
        doomed = stored.path.with_name(f"{STAGING}{uuid.uuid4().hex}.{self._owner}")
        with suppress(OSError):
            stored.path.rename(doomed)
            sync(doomed.parent)
        shutil.rmtree(doomed, ignore_errors=True)

    def has(self, kind: Kind, digest: str) -> bool:
        """Whether there is a complete directory of that digest, its bytes unread."""
        return (self._path(kind, digest) / MANIFEST).is_file()

    def sweep(self) -> None:
        """Removes what earlier processes of this owner left in staging; no other may be alive."""
        for folder in FOLDERS.values():
            for path in (self._root / folder).glob(f"{STAGING}*"):
                if path.name.partition(".")[2].partition(".")[2] == self._owner:
                    shutil.rmtree(path, ignore_errors=True)

    def _path(self, kind: Kind, digest: str) -> Path:
        return volume.directory(self._root, kind, digest)


@contextmanager
def volume_written(path: Path) -> Iterator[None]:
    """Turns a fault of the volume that ``path`` is on into a CommandError (507)."""
    try:
        yield
    except CommandError:
        raise
    except Exception as error:
        problem = volume_problem(error, path)
        if problem is None:
            raise
        raise problem from error


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return volume.sha256_of(file)


def sync(path: Path) -> None:
    """Waits until a file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Makes a directory and its parents so that a power loss cannot take their names away."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Creates a file that is either complete on disk or absent."""
    temporary = path.with_name(f"{STAGING}{path.name}")
    temporary.write_bytes(data)
    sync(temporary)
    temporary.rename(path)
    sync(path.parent)
