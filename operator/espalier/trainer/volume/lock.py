"""One writer of a model's log: a lock that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import IO


class LogBusyError(Exception):
    """Another process has the log open."""


def only_writer(path: Path, seconds: float) -> IO[bytes]:
    """An exclusive lock; waits for a predecessor to end, LogBusyError after ``seconds``."""
    file = path.open("ab")
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                file.close()
                raise LogBusyError(
                    f"another trainer still holds {path.parent.name}'s log"
                ) from error
            time.sleep(0.2)
