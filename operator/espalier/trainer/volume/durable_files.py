"""Files and names that a crash or a power loss leaves whole or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from espalier.trainer.problems import CommandError, volume_problem

# In front of the name of what is not complete yet.
STAGING = ".tmp-"


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


def emptied(folder: Path, keep: Sequence[str] = ()) -> None:
    """Removes what is in a folder but what is to be kept."""
    with suppress(OSError):
        for path in [path for path in folder.iterdir() if path.name not in keep]:
            remove(path)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder with all that is in it, whoever has made it.

    What cannot be removed stays, such as folders in folders deeper than Python recurses.
    """
    with suppress(OSError, RecursionError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_file(path: Path, data: bytes) -> None:
    """Creates a file that is either complete on disk or absent."""
    temporary = path.with_name(f"{STAGING}{path.name}")
    temporary.write_bytes(data)
    sync(temporary)
    temporary.rename(path)
    sync(path.parent)
