"""Tells whether files stayed as they were from before they were hashed until they had been loaded.

Weights are too large for a copy in memory, so they are read twice: to be hashed, and to be loaded.
Who may write a file may set back its bytes and its mtime, but not the time of its last change
(ctime), which only root of the machine that serves it can. So that time tells of a change between.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from espalier import process
from espalier.api.exit_codes import FAULT
from espalier.api.wire.problem import Problem
from espalier.plain_file import open_here

# File systems take the time from a clock that ticks every 10 ms at the slowest.
TICK_SECONDS = 0.02
# What opening ends with where no plain file stands, or none that may be read. All else, as that no
# more files may be open or that a server does not answer, tells nothing of the file.
_NO_FILE = (errno.ELOOP, errno.ENXIO, errno.ENOENT, errno.ENOTDIR, errno.EACCES)


class ChangedError(Exception):
    """Files may not be what they were noted as; ``problem`` says why, and is for the user."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class Identity(NamedTuple):
    """Which file it is, and when it was last changed; sizes in bytes, times in nanoseconds."""

    device: int
    inode: int
    size: int
    mtime: int
    ctime: int


@dataclass(frozen=True)
class Noted:
    """What stood in a directory: itself (``.``) and all below it, by relative path.

    What is no plain file and no directory, or cannot be opened, has no identity.
    """

    directory: Path
    identities: Mapping[str, Identity | None]
    files: tuple[str, ...]

    @property
    def strange(self) -> str:
        """What has no identity, as a sentence; empty without such.

        Who hashes refuses it: behind a link others may change what they like, and unseen.
        """
        name = next((name for name, identity in self.identities.items() if identity is None), "")
        return name and f"{_called(self.directory, name)} is a link, or no plain file"

    def check(self) -> None:
        """Raises ChangedError unless everything is as it was, nothing more and nothing less."""
        try:
            now, _ = _look(self.directory)
        except OSError as error:
            raise ChangedError(_unseen(self.directory, error)) from error
        if differing := {name for name, _ in self.identities.items() ^ now.items()}:
            name = min(differing)
            how = _how(self.identities.get(name), now.get(name))
            raise ChangedError(_changed(_called(self.directory, name), how))

    def stands(self) -> bool:
        """Whether ``check`` raises nothing."""
        try:
            self.check()
        except ChangedError:
            return False
        return True


def note(directory: Path) -> Noted:
    """Notes what stands in a directory, before it is hashed: no later change escapes ``check``.

    That holds where the file system tells of every change, as those of a node's disks and of file
    servers do; tmpfs does not tell of what is written through mapped memory.

    Raises:
        OSError: the directory cannot be looked at now.
    """
    identities, files = _look(directory)
    # What changes from now on has a later time than what was noted.
    time.sleep(TICK_SECONDS)
    for name in files:
        # Memory that a writer has mapped and changed before is written out: the next change of it
        # is told again, where it would have been the same one.
        with contextlib.suppress(OSError), open(directory / name, "rb", opener=open_here) as file:
            os.fsync(file.fileno())
    return Noted(directory, identities, files)


def end_if_changed(noted: Noted) -> None:
    """Ends this process and its children if what it has just loaded was changed since it was noted.

    It may hold other bytes than were hashed; one that starts again does not.
    """
    try:
        noted.check()
    except ChangedError as error:
        process.end_with(error.problem, FAULT)


def _called(directory: Path, name: str) -> str:
    return f"{name} of {directory.name}" if name != "." else f"the directory {directory.name}"


def _changed(what: str, how: str) -> Problem:
    return Problem(
        reason="FilesChanged",
        detail=f"{what} was changed after its bytes were hashed and before they were loaded "
        f"({how})",
        remedy="find out who else writes the claim, and stop it; what is started again hashes "
        "every byte anew",
    )


def _unseen(directory: Path, error: OSError) -> Problem:
    return Problem(
        reason="FilesUnreadable",
        detail=f"whether {directory.name} was changed while it was loaded cannot be seen: {error}",
        remedy="check node and storage; what is started again hashes every byte anew",
    )


def _how(then: Identity | None, now: Identity | None) -> str:
    """What differs: where it is the inode or the ctime alone, the file system may not keep them."""
    if then is None or now is None:
        return "it came or went"
    fields = [name for name in Identity._fields if getattr(then, name) != getattr(now, name)]
    return f"another {', '.join(fields)}"


def _look(directory: Path) -> tuple[dict[str, Identity | None], tuple[str, ...]]:
    """Identities of a directory and all below it, and the names of what is no directory."""
    identities, files = {".": _identity(directory)}, []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        identities[name] = _identity(path)
        if path.is_symlink() or not path.is_dir():
            files.append(name)
    return identities, tuple(files)


def _identity(path: Path) -> Identity | None:
    """By opening it: a file server is then asked how it is now."""
    try:
        descriptor = open_here(str(path), os.O_RDONLY)
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return None
    return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
