"""Compares stored bytes with their digests: ``python -m espalier.trainer.jobs.scrubber``.

Reads from the disk, not from the page cache, no faster than it is told, and writes nothing. Leaves
a ``core.checkpoints.scrub_report.Report`` in the termination log.
"""

from __future__ import annotations

from espalier.termination import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()

import argparse
import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from espalier.core.checkpoints.scrub_report import (
    ALTERED,
    MISSING,
    REPORTED_MOST,
    Fault,
    Report,
    key_of,
)
from espalier.core.volume import Kind
from espalier.process import configure_logs, leave_message
from espalier.trainer.volume.checkpoint_store import CheckpointStore, DigestError

_CHUNK = 1 << 20
_DETAIL_CHARS = 160
# Errors of the volume as a whole, or of this process: they say nothing of the bytes.
_PASSING = {
    *(errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE),
}


class SlowReader:
    """Hashes files at a bounded rate, shared by all threads; counts what it has read.

    Args:
        rate: bytes a second.
        clock: seconds, which only rise.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        rate: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.read_bytes = 0
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()
        self._turn = threading.Lock()

    def sha256_of(self, path: Path) -> str:
        """Hex SHA-256 of a file as it lies on the disk."""
        found = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            # What the page cache holds was read before, perhaps before it rotted.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while chunk := file.read(_CHUNK):
                found.update(chunk)
                self._pay(len(chunk))
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return found.hexdigest()

    def _pay(self, size: int) -> None:
        with self._turn:
            self.read_bytes += size
            now = self._clock()
            self._free_at = max(self._free_at, now) + size / self._rate
            self._sleep(self._free_at - now)


def scrub(
    store: CheckpointStore, base: str, checkpoints: Sequence[str], reader: SlowReader
) -> Report:
    """Reads the base, if one is given, and the checkpoints; ends early once a report is full."""
    of_base = _fault(store, "base", base, reader) if base else None
    rotten: dict[str, Fault] = {}
    checked = 0
    for digest in checkpoints:
        if len(rotten) == REPORTED_MOST:
            break
        fault = _fault(store, "checkpoint", digest, reader)
        if fault is not None:
            rotten[key_of(digest)] = fault
        checked += 1
    return Report(
        checked=checked,
        read_bytes=reader.read_bytes,
        base=of_base.detail if of_base is not None else "",
        rotten=rotten,
    )


def _fault(store: CheckpointStore, kind: Kind, digest: str, reader: SlowReader) -> Fault | None:
    """What is wrong with the bytes; raises OSError where that cannot be known now."""
    if not store.has(kind, digest):
        return Fault(reason=MISSING, detail=f"its bytes are not on the volume ({key_of(digest)})")
    try:
        store.verify(kind, digest, reader.sha256_of)
    except (DigestError, OSError) as error:
        cause = error.__cause__ if isinstance(error, DigestError) else error
        if isinstance(cause, OSError) and cause.errno in _PASSING:
            raise cause from None
        return Fault(reason=ALTERED, detail=_plain(str(error))[:_DETAIL_CHARS])
    return None


def _plain(text: str) -> str:
    """As long in JSON as it is: names of files are whatever somebody wrote."""
    return "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "?" for c in text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 once all is read, whatever was found."""
    parser = argparse.ArgumentParser(description="Compares stored bytes with their digests")
    parser.add_argument("--base", default="", help="digest of a base")
    parser.add_argument("--mebibytes-per-second", type=int, required=True)
    parser.add_argument("digests", nargs="*")
    given = parser.parse_args(arguments)
    volume = Path(os.environ.get("ESPALIER_VOLUME", "/weights"))
    store = CheckpointStore(volume, os.environ.get("ESPALIER_MODEL", ""))
    reader = SlowReader(given.mebibytes_per_second * float(1 << 20))
    leave_message(scrub(store, given.base, given.digests, reader).model_dump())
    return 0


if __name__ == "__main__":
    configure_logs()
    raise SystemExit(main())
