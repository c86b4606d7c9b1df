"""Detects a stuck engine: a command runs, and its thread has used no CPU time for long.

Elapsed time alone shows nothing, because a long batch is honest work. A thread that computes, or
polls a GPU, uses CPU time all along. One that waits for another rank does not, and that wait has a
limit of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from espalier.api.wire.problem import Problem

T = TypeVar("T")


@dataclass(frozen=True)
class _Watched:
    """A command on a thread, and when the thread was last seen to use the CPU."""

    what: str
    thread: int
    started: float
    cpu_seconds: float
    moved: float


def thread_cpu_seconds(thread: int) -> float:
    """The CPU time that a living thread of this process has used."""
    return time.clock_gettime(time.pthread_getcpuclockid(thread))


class Watchdog:
    """Watches one command at a time; it has no thread, and checks when it is asked.

    ``seconds`` without CPU time count as stuck; ``clock`` is monotonic.
    """

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[int], float] = thread_cpu_seconds,
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._cpu = cpu
        self._lock = threading.Lock()
        self._watched: _Watched | None = None

    def run(self, what: str, work: Callable[[], T]) -> T:
        """Runs work on this thread and watches it."""
        thread, now = threading.get_ident(), self._clock()
        with self._lock:
            self._watched = _Watched(what, thread, now, self._cpu(thread), now)
        try:
            return work()
        finally:
            with self._lock:
                self._watched = None

    def stuck(self) -> Problem | None:
        """The problem of a stuck command, None without one; callable from any thread."""
        with self._lock:
            seen = self._watched
            if seen is None:
                return None
            now, used = self._clock(), self._cpu(seen.thread)
            if used > seen.cpu_seconds:
                self._watched = _Watched(seen.what, seen.thread, seen.started, used, now)
                return None
        if now - seen.moved <= self._seconds:
            return None
        return Problem(
            reason="EngineStuck",
            detail=f"{seen.what} has run for {now - seen.started:.0f} s, and its thread has used "
            f"no CPU time for {now - seen.moved:.0f} s",
            remedy="the kubelet restarts the trainer, which replays its log; if it happens again, "
            "check the node, the GPU and the storage behind the claim",
        )
