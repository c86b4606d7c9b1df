"""Tells whether files stayed as they were from before they were hashed until they had been loaded.

Weights are too large for a copy in memory, so they are read twice: to be hashed, and to be loaded.
Who may write a file may set back its bytes and its mtime, but not the time of its last change
(ctime), which only root of the machine that serves it can. So that time tells of a change between.
"""

from __future__ import annotations

import contextlib
import multiprocessing
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


class ChangedError(Exception):
    """A file was changed after it was noted; ``problem`` names it, and is for the user."""

    def __init__(self, directory: Path, name: str) -> None:
        where = f"{name} of {directory.name}" if name != "." else f"the directory {directory.name}"
        self.problem = Problem(
            reason="FilesChanged",
            detail=f"{where} was changed after its bytes were hashed and before they were loaded",
            remedy="find out who else writes the claim, and stop it; what is started again hashes "
            "every byte anew",
        )
        super().__init__(self.problem.detail)


class Identity(NamedTuple):
    """Which file it is, and when it was last changed; sizes in bytes, times in nanoseconds."""

    device: int
    inode: int
    size: int
    written: int
    changed: int


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
        """The name of something without identity, which who hashes refuses; empty without such."""
        return next((name for name, identity in self.identities.items() if identity is None), "")

    def check(self) -> None:
        """Raises ChangedError unless everything is as it was, nothing more and nothing less.

        What had no identity counts as changed.
        """
        now, _ = _look(self.directory)
        for name in sorted(self.identities.keys() | now.keys()):
            then = self.identities.get(name)
            if then is None or then != now.get(name):
                raise ChangedError(self.directory, name)


def note(directory: Path) -> Noted:
    """Notes what stands in a directory, before it is hashed: no later change escapes ``check``.

    That holds where the file system tells of every change, as those of a node's disks and of file
    servers do; tmpfs does not tell of what is written through mapped memory.
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
        process.leave_problem(error.problem)
        for child in multiprocessing.active_children():
            child.kill()
        process.end(FAULT)


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
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return None
    return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
