"""Reads a file of a folder that others write too, who may have put something else in its place."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

# What opening ends with where there is a link, a folder, or a pipe that nobody reads.
_STRANGE = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO)


class NotPlainError(Exception):
    """A link, a folder, a pipe or a device stands where a file was expected."""


def read_plain(path: Path) -> bytes:
    """What a file holds. Follows no link in its last place, and waits for nobody who writes a pipe.

    Raises:
        NotPlainError: it is no plain file.
        OSError: it is not there, or cannot be read.
    """
    try:
        with open(path, "rb", opener=open_here) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise NotPlainError(f"{path} is no plain file")
            return file.read()
    except OSError as error:
        if error.errno in _STRANGE:
            raise NotPlainError(f"{path} is no plain file") from error
        raise


def open_here(path: str, flags: int) -> int:
    """As ``os.open``, of no link in its last place, and without waiting for who writes a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
