"""Measures how long the trainer has had no calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Calls:
    """Counts calls under way and remembers when the last one ended; for one thread.

    ``clock`` is monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running = 0
        self._last = clock()

    def touch(self) -> None:
        """Starts the quiet time again, as the end of a call does."""
        self._last = self._clock()

    @contextmanager
    def one(self) -> Iterator[None]:
        """A call, from its beginning to its answer."""
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self.touch()

    @property
    def quiet_seconds(self) -> float:
        """Seconds since the last call ended; 0 while one is under way."""
        return 0.0 if self._running else self._clock() - self._last
