"""The progress of an import: ``GET /progress`` of the importer's pod, for the operator.

It serves three public numbers without a token, and the pod needs no rights. It answers one caller
at a time, so callers cost almost nothing.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer

from espalier.api.wire.import_state import IMPORT_PROGRESS, ImportState

logger = logging.getLogger(__name__)

PORT = 8000
# The limit for a caller's request, and for sending the answer.
CALL_SECONDS = 5.0
# The time over which the rate is taken, roughly.
WINDOW_SECONDS = 15.0
# An import waits this long for the server to end.
POLL_SECONDS = 0.1


class Progress:
    """Bytes done and in total; ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._total = 0
        self._done: Callable[[], int] = lambda: 0
        self._mark = (clock(), 0)

    def begin(self, total: int, done: Callable[[], int]) -> None:
        """Starts a phase of ``total`` bytes; ``done`` counts those that are present.

        Bytes that were present before do not count for the rate.
        """
        self._total, self._done = total, done
        self._mark = (self._clock(), done())

    def state(self) -> ImportState:
        """The current state and the recent rate in bytes a second."""
        now, done = self._clock(), min(self._done(), self._total)
        since, before = self._mark
        rate = max(0, done - before) / (now - since) if now > since else 0.0
        if now - since >= WINDOW_SECONDS:
            self._mark = (now, done)
        return ImportState(done_bytes=done, total_bytes=self._total, bytes_per_second=round(rate))


@contextmanager
def served(progress: Progress, port: int = PORT) -> Iterator[int]:
    """Serves ``GET /progress`` inside the block; yields the port, 0 if it cannot be served."""
    host = os.environ.get("ESPALIER_HOST", "0.0.0.0")
    try:
        server = HTTPServer((host, port), _handler(progress))
    except OSError as error:
        logger.warning("how far the import is stays in this log: %s:%d: %s", host, port, error)
        yield 0
        return
    thread = threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def _handler(progress: Progress) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = CALL_SECONDS

        def do_GET(self) -> None:
            if self.path != IMPORT_PROGRESS:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            body = progress.state().model_dump_json().encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Does not log calls."""

    return Handler
