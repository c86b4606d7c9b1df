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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from espalier.core import volume
from espalier.core.volume import FOLDERS, MANIFEST, Kind, canonical_json, digest_named, digest_of
from espalier.trainer.problems import CommandError, volume_problem

logger = logging.getLogger(__name__)

STAGING = ".tmp-"
# Files hashed at the same time: one takes a core, and a volume seldom feeds more.
HASHED_AT_ONCE = 4
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
        """The bytes of its files."""
        return sum(int(entry["size"]) for entry in self.manifest["files"].values())


class CheckpointStore:
    """Bases and checkpoints on a volume. ``owner`` marks this process's staging."""

    def __init__(self, root: Path, owner: str) -> None:
        self._root = root
        self._owner = owner

    @property
    def root(self) -> Path:
        """The directory where the volume is mounted."""
        return self._root

    def model_directory(self, model: str) -> Path:
        """The directory of a model's command log; made if absent."""
        path = self.model_path(model)
        make_directory(path)
        return path

    def model_path(self, model: str) -> Path:
        """The directory of a model's command log, which may be absent."""
        return self._root / "models" / model

    def download(self, model: str, name: str) -> Path:
        """The directory of an unfinished download; removes the model's other downloads."""
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
        """An empty directory to fill and ``commit``; removed if the block ends without a commit.

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

        ``promised`` are the SHA-256 of files that their source gives; DigestError if one differs.
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
        """The directory of a digest, its manifest and sizes checked; raises DigestError."""
        path = self._path(kind, digest)
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

    def verify(
        self, kind: Kind, digest: str, hashed: Callable[[Path], str] | None = None
    ) -> Stored:
        """Like ``open``, and checks every byte against its SHA-256; no other file may be there.

        ``hashed`` is the SHA-256 of a file, by another way of reading it.
        """
        stored = self.open(kind, digest)
        files = stored.manifest["files"]
        there = (p.relative_to(stored.path) for p in stored.path.rglob("*") if not p.is_dir())
        if others := volume.unlisted((path.as_posix() for path in there), files):
            raise DigestError(
                f"{kind} {digest} holds {others[0]}, which its manifest does not list"
            )
        with ThreadPoolExecutor(HASHED_AT_ONCE) as threads:
            digests = threads.map(hashed or sha256_of, (stored.path / name for name in files))
            for name, found in zip(files, digests, strict=True):
                if found != files[name]["sha256"]:
                    raise DigestError(f"{name} of {kind} {digest} is corrupt")
        return stored

    def checkpoints(self, model: str = "") -> Iterator[Stored]:
        """Every readable checkpoint of a model, or of all models."""
        for path in sorted((self._root / FOLDERS["checkpoint"]).glob("sha256-*")):
            try:
                stored = self.open("checkpoint", digest_named(path.name))
            except DigestError:
                # Damage to another model's checkpoint must not keep this model from starting.
                logger.warning("skipping an unreadable checkpoint", exc_info=True)
                continue
            if model in ("", stored.manifest["model"]):
                yield stored

    def survey(self) -> Iterator[tuple[str, Stored | DigestError]]:
        """Every directory among the checkpoints by name, with its checkpoint or error."""
        for path in sorted((self._root / FOLDERS["checkpoint"]).glob("*")):
            entry: Stored | DigestError
            try:
                if path.name.startswith(STAGING):
                    entry = DigestError("it was never finished: its writer died")
                else:
                    entry = self.open("checkpoint", digest_named(path.name))
            except DigestError as error:
                entry = error
            yield path.name, entry

    def discard(self, stored: Stored) -> None:
        """Removes a checkpoint that was never published; a crash leaves it whole or as staging."""
        doomed = stored.path.with_name(f"{STAGING}{uuid.uuid4().hex}.{self._owner}")
        with suppress(OSError):
            stored.path.rename(doomed)
            sync(doomed.parent)
        shutil.rmtree(doomed, ignore_errors=True)

    def has(self, kind: Kind, digest: str) -> bool:
        """Whether a complete directory of that digest exists; reads none of its bytes."""
        return (self._path(kind, digest) / MANIFEST).is_file()

    def sweep(self) -> None:
        """Removes staging left by earlier processes of this owner, none of which may be alive."""
        for folder in FOLDERS.values():
            for path in (self._root / folder).glob(f"{STAGING}*"):
                if path.name.partition(".")[2].partition(".")[2] == self._owner:
                    shutil.rmtree(path, ignore_errors=True)

    def _path(self, kind: Kind, digest: str) -> Path:
        return volume.directory(self._root, kind, digest)


@contextmanager
def volume_written(path: Path) -> Iterator[None]:
    """Turns a fault of the volume under ``path`` into a CommandError (507)."""
    try:
        yield
    except CommandError:
        raise
    except Exception as error:
        problem = volume_problem(error, path)
        if problem is None:
            raise
        raise problem from error


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
