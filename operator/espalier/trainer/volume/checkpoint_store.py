"""Writes and reads the immutable, content-addressed directories of the volume (``core.volume``).

A directory without ``.tmp-`` in front is complete: it was renamed after all its files, the manifest
last, were on disk. A model writes its checkpoints into a folder of its own, which is all that its
trainer's pod may write of them; what a folder holds of another model does not count. Versions
before had one folder for all, and what they left in it stays there and is read.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from espalier.core import volume
from espalier.core.volume import (
    FOLDERS,
    MANIFEST,
    Kind,
    canonical_json,
    digest_named,
    digest_of,
    directory_name,
    is_digest,
)
from espalier.trainer.volume.durable_files import STAGING, make_directory, sync, volume_written
from espalier.trainer.volume.manifests import DigestError, Stored, Verified, model_of, opened
from espalier.trainer.volume.staged_files import Entry, measured
from espalier.unchanged import Noted, note

__all__ = ["CheckpointStore", "DigestError", "Stored", "Verified"]

logger = logging.getLogger(__name__)

# Files hashed at the same time: one takes a core, and a volume seldom feeds more.
HASHED_AT_ONCE = 4


class CheckpointStore:
    """Bases and checkpoints on a volume.

    Args:
        root: the directory where the volume is mounted.
        model: whose checkpoints it writes, and looks for first; empty where it only reads.
        owner: marks this process's staging, by default the model.
    """

    def __init__(self, root: Path, model: str, owner: str = "") -> None:
        self._root = root
        self._model = model
        self._owner = owner or model

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
        return volume.log_of(self._root, model)

    @contextmanager
    def staging(self, kind: Kind) -> Iterator[Path]:
        """An empty directory to fill and ``commit``; removed if the block ends without a commit.

        Raises VolumeFull, VolumeReadOnly or VolumeFailing (507) anywhere in the block.
        """
        folder = self._folder(kind)
        path = folder / f"{STAGING}{uuid.uuid4().hex}.{self._owner}"
        with volume_written(folder):
            try:
                make_directory(folder)
                path.mkdir(mode=0o755)
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)

    def commit(self, kind: Kind, staged: Path, metadata: dict[str, Any]) -> tuple[Stored, bool]:
        """Makes a staged directory durable under its digest; False if it was there already."""
        return self.place(kind, staged, measured(staged), metadata)

    def place(
        self, kind: Kind, staged: Path, files: Mapping[str, Entry], metadata: dict[str, Any]
    ) -> tuple[Stored, bool]:
        """Like ``commit``, of a directory whose files are ``measured`` and on disk."""
        manifest = {"kind": kind, "files": files, **metadata}
        make_directory(self._folder(kind))
        text = canonical_json(manifest)
        digest = digest_of(text)
        with (staged / MANIFEST).open("x") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())
        staged.chmod(0o755)
        sync(staged)
        final = self._folder(kind) / directory_name(digest)
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
        return opened(self._path(kind, digest), kind, digest)

    def verify(
        self,
        kind: Kind,
        digest: str,
        hashed: Callable[[Path], str] | None = None,
        noted: Noted | None = None,
    ) -> Verified:
        """Like ``open``, and checks every byte against its SHA-256; no other file may be there.

        ``hashed`` is the SHA-256 of a file, by another way of reading it; ``noted`` what the
        directory was noted as, where somebody reads it already. Raises OSError where it fails.
        """
        path = self._path(kind, digest)
        noted = noted or note(path)
        stored = opened(path, kind, digest)
        files = stored.manifest["files"]
        if others := volume.unlisted(noted.files, files):
            raise DigestError(
                f"{kind} {digest} holds {others[0]}, which its manifest does not list"
            )
        with ThreadPoolExecutor(HASHED_AT_ONCE) as threads:
            digests = threads.map(hashed or sha256_of, (stored.path / name for name in files))
            for name, found in zip(files, digests, strict=True):
                if found != files[name]["sha256"]:
                    raise DigestError(f"{name} of {kind} {digest} is corrupt")
        if noted.strange:
            raise DigestError(noted.strange)
        return Verified(stored.digest, stored.path, stored.manifest, noted)

    def checkpoints(self, model: str = "") -> Iterator[Stored]:
        """Every readable checkpoint of a model, or of all models."""
        for path in self._directories(model):
            try:
                stored = opened(path, "checkpoint", digest_named(path.name))
            except DigestError:
                # Damage to another model's checkpoint must not keep this model from starting.
                logger.warning("skipping an unreadable checkpoint", exc_info=True)
                continue
            of = stored.manifest["model"]
            if model in ("", of) and self._is_at_home(path, of):
                yield stored

    def survey(self, model: str) -> Iterator[tuple[str, Stored | DigestError]]:
        """Every directory where a model's checkpoints may lie by name, with checkpoint or error."""
        shared = self._root / FOLDERS["checkpoint"]
        folders = [path for path in (shared, shared / model) if path.is_dir()]
        found = sorted(path for folder in folders for path in folder.iterdir())
        for path in found:
            name = path.relative_to(shared).as_posix()
            if path.name.startswith(STAGING):
                yield name, DigestError("it was never finished: its writer died")
            elif path.parent == shared and path.is_dir() and not _is_named(path):
                continue
            else:
                try:
                    yield name, opened(path, "checkpoint", digest_named(path.name))
                except DigestError as error:
                    yield name, error

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

    def has_own(self, digest: str) -> bool:
        """Like ``has``, of a checkpoint of this model: it looks into no other model's folder."""
        folders = (self._folder("checkpoint"), self._root / FOLDERS["checkpoint"])
        name = directory_name(digest)
        return any((folder / name / MANIFEST).is_file() for folder in folders)

    def sweep(self) -> None:
        """Removes staging left by earlier processes of this owner, none of which may be alive."""
        shared = (self._root / folder for folder in FOLDERS.values())
        for folder in {*shared, self._folder("checkpoint")}:
            for path in folder.glob(f"{STAGING}*"):
                if path.name.partition(".")[2].partition(".")[2] == self._owner:
                    shutil.rmtree(path, ignore_errors=True)

    def _folder(self, kind: Kind) -> Path:
        """Where this process writes."""
        if kind == "base":
            return self._root / FOLDERS[kind]
        return volume.checkpoints_of(self._root, self._model)

    def _path(self, kind: Kind, digest: str) -> Path:
        """Where the directory of a digest lies, or would."""
        own, name = self._folder(kind), directory_name(digest)
        if kind == "base" or (own / name).is_dir():
            return own / name
        shared = self._root / FOLDERS[kind]
        if (shared / name).is_dir():
            return shared / name
        elsewhere = (folder / name for folder in self._model_folders())
        at_home = (path for path in elsewhere if self._is_at_home(path, model_of(path)))
        return next(at_home, own / name)

    def _directories(self, model: str) -> list[Path]:
        """The complete directories where checkpoints of a model, or of all, may lie."""
        shared = self._root / FOLDERS["checkpoint"]
        own = [shared / model] if model else self._model_folders()
        found = [path for folder in (shared, *own) for path in folder.glob("sha256-*")]
        return sorted(filter(_is_named, found))

    def _model_folders(self) -> list[Path]:
        shared = self._root / FOLDERS["checkpoint"]
        found = shared.iterdir() if shared.is_dir() else ()
        return sorted(p for p in found if not (_is_named(p) or p.name.startswith(STAGING)))

    def _is_at_home(self, path: Path, model: str) -> bool:
        """Whether a checkpoint of a model lies with its others, or where those of all lay."""
        shared = self._root / FOLDERS["checkpoint"]
        return path.parent in (shared, shared / model)


def _is_named(path: Path) -> bool:
    return is_digest(digest_named(path.name))


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return volume.sha256_of(file)
