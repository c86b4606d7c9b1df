"""One writer of a model's log: a lock that ends with the process that holds it."""

from __future__ import annotations

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout


class LogBusyError(Exception):
    """Another process has the log open."""


def only_writer(path: Path, seconds: float) -> BaseFileLock:
    """An exclusive lock; waits for a predecessor to end, LogBusyError after ``seconds``.

    A volume without flock is an OSError: the library's substitute, a marker file, would outlive a
    killed process.
    """
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout=seconds, poll_interval=0.2)
    except Timeout as error:
        raise LogBusyError(f"another trainer still holds {path.parent.name}'s log") from error
    return lock
