"""A stream for logs that never makes an event loop wait for whoever reads them."""

from __future__ import annotations

import os
import queue
import threading
import time

GATHER_SECONDS = 0.02
# Some megabytes. With so many unread, writing waits: nothing is dropped.
LINES = 10_000


class LogStream:
    """Text that a thread of its own writes to a descriptor, many lines at a time.

    A line written by the loop itself costs a system call, and waits for the reader where the pipe
    is full. What a killed process wrote in its last moments is lost.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: queue.Queue[str | None] = queue.Queue(LINES)
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        """Has the text written soon."""
        self._lines.put(text)

    def flush(self) -> None:
        """Nothing: the thread writes all that there is, and ``close`` waits for it."""

    def close(self) -> None:
        """Returns when everything is written."""
        self._lines.put(None)
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            texts = [self._lines.get()]
            if texts[0] is not None:
                time.sleep(GATHER_SECONDS)
            while not self._lines.empty():
                texts.append(self._lines.get())
            ended = None in texts
            rest = "".join(text for text in texts if text is not None).encode()
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
