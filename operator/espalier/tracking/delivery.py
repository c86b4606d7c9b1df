"""Tells one tracker what a run reports, on a thread of its own, so that it never holds the run up.

A tracker may hang for minutes: what it has not taken yet waits in a queue of a fixed length, out of
which the oldest step falls.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from espalier.tracking.tracker import Tracker

# Steps that wait for a tracker.
ROOM = 256
# After its start failed, a tracker is started anew with a step, and not more often than this.
RETRY_SECONDS = 60.0


@dataclass
class Told:
    """What became of what a tracker was told.

    Attributes:
        failed: calls that raised.
        dropped: steps that found no room, or came while the tracker could not be started.
        messages: of failures, that nobody has read yet.
    """

    failed: int = 0
    dropped: int = 0
    messages: list[str] = field(default_factory=list)


class Delivery:
    """One tracker, its queue and its thread."""

    def __init__(
        self,
        tracker: Tracker,
        *,
        room: int = ROOM,
        retry_seconds: float = RETRY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tracker = tracker
        self._name = type(tracker).__name__
        self._room, self._retry, self._clock = room, retry_seconds, clock
        self._changed = threading.Condition()
        self._steps: deque[tuple[int, dict[str, float]]] = deque()
        self._told = Told()
        self._config: Mapping[str, Any] = {}
        self._thread: threading.Thread | None = None
        self._finishing = False

    @property
    def told(self) -> tuple[int, int]:
        """Calls that failed, and steps that were dropped, so far."""
        with self._changed:
            return self._told.failed, self._told.dropped

    def messages(self) -> list[str]:
        """What failed since this was asked last."""
        with self._changed:
            found, self._told.messages = self._told.messages, []
            return found

    def start(self, config: Mapping[str, Any]) -> None:
        """Starts the tracker on a new thread; what an earlier one still holds is given up."""
        with self._changed:
            self._config, self._finishing = config, False
            self._steps.clear()
            # Daemon: a tracker that hangs must not keep the process.
            self._thread = threading.Thread(
                target=self._run, name=f"tracker-{self._name}", daemon=True
            )
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queues a step; returns at once."""
        with self._changed:
            self._steps.append((step, dict(metrics)))
            if len(self._steps) > self._room:
                self._steps.popleft()
                self._drop(1, f"{self._room} steps wait for it: the oldest was dropped")
            self._changed.notify_all()

    def end(self) -> None:
        """No more will come: the tracker takes what is queued and ends."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()

    def ended(self, until: float) -> None:
        """Waits for that until then, by the clock of ``time.monotonic``; twice is fine."""
        thread = self._thread
        if thread is None:
            return
        thread.join(max(0.0, until - time.monotonic()))
        with self._changed:
            self._thread = None
            if thread.is_alive():
                left = len(self._steps)
                self._steps.clear()
                self._drop(left, f"it has not ended in time, {left} steps are unread")

    def _run(self) -> None:
        mine = threading.current_thread()
        started = self._call("start", lambda: self._tracker.start(self._config))
        again = self._clock() + self._retry
        while (step := self._next(mine)) is not None:
            if not started and self._clock() >= again:
                started = self._call("start", lambda: self._tracker.start(self._config))
                again = self._clock() + self._retry
            if started:
                self._call("log", partial(self._tracker.log, *step))
            else:
                with self._changed:
                    self._told.dropped += 1
        with self._changed:
            mine_still = self._thread in (mine, None)
        # One that hung, and comes back after it was given up and started anew, ends nothing.
        if mine_still:
            self._call("finish", self._tracker.finish)

    def _next(self, mine: threading.Thread) -> tuple[int, dict[str, float]] | None:
        """The next step, waited for; None when no more will come for this thread."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._steps or self._finishing or self._thread is not mine
            )
            if self._thread is not mine or not self._steps:
                return None
            return self._steps.popleft()

    def _call(self, what: str, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception as error:
            with self._changed:
                self._told.failed += 1
                text = f"{type(error).__name__}: {error}"
                self._told.messages.append(f"{self._name}.{what} failed: {text[:500]}")
            return False
        return True

    def _drop(self, steps: int, why: str) -> None:
        """With the lock held."""
        first = not self._told.dropped
        self._told.dropped += steps
        if first or self._finishing:
            self._told.messages.append(f"{self._name} is slow: {why}")
