"""A stream for logs that never makes an event loop wait for a slow reader."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import suppress

GATHER_SECONDS = 0.1
# A few megabytes. Once that much is unread, writing waits: nothing is dropped.
LINES = 10_000


class LogStream:
    """Text that a thread of its own writes to a descriptor, all that has come every 100 ms.

    A line written by the loop itself costs a system call, and waits for the reader where the pipe
    is full. What a killed process wrote in its last moments is lost.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._texts: deque[str] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        """Has the text written soon."""
        while len(self._texts) >= LINES:
            time.sleep(GATHER_SECONDS)
        self._texts.append(text)

    def flush(self) -> None:
        """Nothing: the thread writes all that there is, and ``close`` waits for it."""

    def close(self) -> None:
        """Returns when everything is written."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self._closing.wait(GATHER_SECONDS)
            rest = "".join(self._texts.popleft() for _ in range(len(self._texts))).encode()
            # Nobody reads the pipe any more: there is nowhere to report that.
            with suppress(BrokenPipeError):
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
