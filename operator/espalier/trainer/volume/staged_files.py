"""Reads a folder that somebody else has filled, who may mean harm: an import's, above all.

No link is followed, and nothing but plain files under one name is read. Each is opened below the
open folder that it lies in, so a path that becomes a link meanwhile leads nowhere.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from espalier.core.volume import sha256_of

# More files than any base has; folders count too.
MOST_FILES = 10_000
DEEPEST = 8
_CHUNK = 1 << 24
# Nobody waits for who writes a pipe.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
# What opening a file ends with that was made so that it cannot be read.
_REFUSES = (errno.EACCES, errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.ENXIO)

Entry = dict[str, str | int]


class StrangeFileError(Exception):
    """A staged folder holds what nobody of ours puts there."""


def measured(staged: Path, allowed: Callable[[str], bool] = lambda _: True) -> dict[str, Entry]:
    """The size and SHA-256 of every file by relative name, each on disk and readable by all.

    A file that is written while it is read, or afterwards, cannot be told: who reads it later
    compares its digest.

    Raises:
        StrangeFileError: before anything is read, for a link, a file with a second name, a special
            file, a name that is not ``allowed``, too many files or folders too deep.
    """
    with _root(staged) as folder:
        for _ in _Walk(allowed).files(folder):
            pass
        return {name: _entry(file) for name, file in _Walk(allowed, settles=True).files(folder)}


def read_small(staged: Path, name: str, most: int) -> bytes:
    """A file of at most ``most`` bytes; StrangeFileError for a larger or strange one, or none."""
    with _root(staged) as folder, _opened(_open(folder, name, name)) as file:
        _check_plain(os.fstat(file), name)
        with os.fdopen(os.dup(file), "rb") as stream:
            content = stream.read(most + 1)
    if len(content) > most:
        raise StrangeFileError(f"{name} has more than {most} bytes")
    return content


def copied(staged: Path, names: tuple[str, ...], target: Path) -> None:
    """Copies files out of a staged folder; StrangeFileError if one is strange or not there."""
    with _root(staged) as folder:
        for name in names:
            with _opened(_open(folder, name, name)) as file, (target / name).open("xb") as made:
                _check_plain(os.fstat(file), name)
                with os.fdopen(os.dup(file), "rb") as stream:
                    shutil.copyfileobj(stream, made, _CHUNK)


def _root(staged: Path) -> AbstractContextManager[int]:
    try:
        return _opened(os.open(staged, _READ | os.O_DIRECTORY))
    except OSError as error:
        if error.errno not in _REFUSES:
            raise
        raise StrangeFileError(f"{staged.name} is no folder: {error.strerror}") from error


class _Walk:
    """The files below a folder; ``settles`` gives all of them our modes and syncs folders."""

    def __init__(self, allowed: Callable[[str], bool], *, settles: bool = False) -> None:
        self._allowed = allowed
        self._settles = settles
        self._seen = 0

    def files(self, folder: int, inside: str = "") -> Iterator[tuple[str, int]]:
        """Every file by relative name, open for as long as the caller looks at it."""
        for base_name in self._names(folder, inside):
            name = f"{inside}{base_name}"
            with _opened(_open(folder, base_name, name)) as found:
                status = os.fstat(found)
                if not stat.S_ISDIR(status.st_mode):
                    _check_plain(status, name)
                    if not self._allowed(name):
                        raise StrangeFileError(f"{name} is no file of a base")
                    if self._settles:
                        os.fchmod(found, 0o644)
                    yield name, found
                    continue
                if name.count("/") + 1 >= DEEPEST:
                    raise StrangeFileError(f"{name} is deeper than {DEEPEST} folders")
                yield from self.files(found, f"{name}/")
                if self._settles:
                    os.fchmod(found, 0o755)
                    os.fsync(found)

    def _names(self, folder: int, inside: str) -> list[str]:
        names = []
        with os.scandir(folder) as entries:
            for entry in entries:
                self._seen += 1
                if self._seen > MOST_FILES:
                    raise StrangeFileError(f"there are more than {MOST_FILES} files")
                if not entry.name.isprintable():
                    raise StrangeFileError(f"{inside}{entry.name!r} has a name that is no text")
                names.append(entry.name)
        return sorted(names)


def _open(folder: int, base_name: str, name: str) -> int:
    try:
        kind = os.stat(base_name, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISLNK(kind):
            raise StrangeFileError(f"{name} is a link")
        # To open a device may do something.
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise StrangeFileError(f"{name} is no plain file")
        return os.open(base_name, _READ, dir_fd=folder)
    except OSError as error:
        if error.errno not in _REFUSES:
            raise
        raise StrangeFileError(f"{name} cannot be read: {error.strerror}") from error


@contextmanager
def _opened(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_plain(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StrangeFileError(f"{name} is no plain file")
    # Some file systems count none.
    if status.st_nlink > 1:
        raise StrangeFileError(f"{name} has another name too, by which it may be changed")


def _entry(file: int) -> Entry:
    os.fsync(file)
    with os.fdopen(os.dup(file), "rb") as stream:
        digest = sha256_of(stream)
        return {"sha256": digest, "size": os.fstat(file).st_size}
