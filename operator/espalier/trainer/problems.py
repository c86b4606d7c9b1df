"""Errors with a reason and a remedy: over HTTP, and as the termination message of a process."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from pathlib import Path

from espalier.api.wire.problem import Problem

_VOLUME_FAULTS = {
    "VolumeFull": (
        "the volume has no space left",
        "enlarge the claim or delete checkpoints, then send the command again",
    ),
    "VolumeReadOnly": (
        "the volume cannot be written",
        "remount it writable (a file system is often remounted read-only after an I/O error), "
        "then send the command again",
    ),
    "VolumeFailing": (
        "the volume failed to read or write",
        "check the node and the storage behind the claim, then send the command again",
    ),
}
_ERRNO_FAULTS = {
    errno.ENOSPC: "VolumeFull",
    errno.EDQUOT: "VolumeFull",
    errno.EFBIG: "VolumeFull",
    errno.EROFS: "VolumeReadOnly",
    errno.EIO: "VolumeFailing",
    errno.ESTALE: "VolumeFailing",
}
_SQLITE_FAULTS = {
    sqlite3.SQLITE_FULL: "VolumeFull",
    sqlite3.SQLITE_READONLY: "VolumeReadOnly",
    # On a read-only volume the rollback journal cannot be opened for writing.
    sqlite3.SQLITE_CANTOPEN: "VolumeReadOnly",
    sqlite3.SQLITE_IOERR: "VolumeFailing",
}


class CommandError(Exception):
    """An error to answer with: an HTTP status and a Problem."""

    def __init__(self, status: int, reason: str, detail: str, remedy: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.status = status
        self.problem = Problem(detail=detail, reason=reason, remedy=remedy)

    def __reduce__(self) -> tuple[type[CommandError], tuple[int, str, str, str]]:
        """As a rank sends it to another."""
        problem = self.problem
        return CommandError, (self.status, problem.reason, problem.detail, problem.remedy)


class UserMistakeError(Exception):
    """Something only the user can mend, found before the trainer could serve."""

    def __init__(self, reason: str, detail: str, remedy: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.problem = Problem(detail=detail, reason=reason, remedy=remedy)


def invalid(field: str, detail: str, remedy: str = "") -> CommandError:
    """422: the request names what cannot be applied."""
    return CommandError(422, "InvalidRequest", f"{field}: {detail}", remedy)


def volume_problem(error: BaseException, path: Path) -> CommandError | None:
    """507 for an error of the volume of ``path``, as files, safetensors or SQLite tell; else None.

    Whatever the volume's fault, nothing was applied and nothing is lost.
    """
    fault = _fault(error)
    if fault is None:
        return None
    # SQLite tells of a volume that turned read-only under it only as a failed write.
    there = next(place for place in (path, *path.parents) if place.exists())
    if fault == "VolumeFailing" and os.statvfs(there).f_flag & os.ST_RDONLY:
        fault = "VolumeReadOnly"
    what, remedy = _VOLUME_FAULTS[fault]
    return CommandError(
        507, fault, f"{what} ({error}); nothing was applied and the gradients are kept", remedy
    )


def _fault(error: BaseException) -> str | None:
    if isinstance(error, OSError):
        return _ERRNO_FAULTS.get(error.errno or 0)
    if isinstance(error, sqlite3.Error):
        # Extended codes carry the primary one in their low byte.
        code = getattr(error, "sqlite_errorcode", None)
        return _SQLITE_FAULTS.get(code & 0xFF) if code is not None else None
    # safetensors reports an I/O error as its own type, with the errno in its text.
    found = re.search(r"os error (\d+)", str(error))
    return _ERRNO_FAULTS.get(int(found[1])) if found else None
