"""Unpacks what a pod sends: files and folders, and nothing that could lead out of where they go.

Python's own filter ``data`` is not enough: before 3.11.13 and 3.12.11 links could pass it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Self

from espalier.cli.failure import CliError

# What the folder of the pod may hold (COPY_SIZE), and many times the files of any base.
MOST_BYTES = 2**40
MOST_ENTRIES = 10_000
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)


class _Plain(tarfile.TarInfo):
    """An entry that is a file or a folder.

    All others are refused by their header: those with long names or PAX fields are read into
    memory whole, however large they say that they are.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> Self:
        if self.type not in _PLAIN:
            raise _refused(self, "is neither a plain file nor a folder, or of a name too long")
        plain: Self = super()._proc_member(archive)  # type: ignore[misc]
        return plain


def unpack(raw: IO[bytes], into: Path) -> None:
    """Writes the files of a tar archive below ``into``, which it makes; what it wrote stays there.

    Raises:
        CliError: an entry is refused, the archive is broken, or a file cannot be written.
    """
    try:
        into.mkdir()
        with tarfile.open(fileobj=raw, mode="r|", tarinfo=_Plain) as archive:
            archive.extractall(into, members=_checked(archive), filter="data")
    except tarfile.TarError as error:
        raise CliError(f"the files did not arrive whole: {error}; try again") from error
    except OSError as error:
        raise CliError(f"the files cannot be written to {into}: {error.strerror}") from error


def _checked(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    left = MOST_BYTES
    for number, entry in enumerate(archive, start=1):
        path = PurePosixPath(entry.name)
        if path.is_absolute() or ".." in path.parts:
            raise _refused(entry, "leads out of the output")
        if not 0 <= entry.size <= left:
            raise _refused(entry, f"takes the archive beyond {MOST_BYTES} bytes")
        if number > MOST_ENTRIES:
            raise _refused(entry, f"takes the archive beyond {MOST_ENTRIES} entries")
        left -= entry.size
        yield entry


def _refused(entry: tarfile.TarInfo, why: str) -> CliError:
    # Its name may hold what no terminal should be sent.
    return CliError(
        f"nothing was written: {entry.name!a} of the archive that the pod sent {why}: look at "
        "the trainer's image, or export from a mounted volume with --volume"
    )
