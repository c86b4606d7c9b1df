"""What every process of Espalier does alike: JSON logs, and a last message for the operator."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn

from pythonjsonlogger.core import LogData
from pythonjsonlogger.json import JsonFormatter as LibraryFormatter

from espalier.api.wire.problem import Problem

TERMINATION_LOG_VARIABLE = "ESPALIER_TERMINATION_LOG"
# The kubelet makes this file; outside a pod there is none.
TERMINATION_LOG = "/dev/termination-log"
# A write for each line costs a system call and a switch between threads.
GATHER_SECONDS = 0.1
GATHER_BYTES = 1 << 16
# Some megabytes. While they are unread, further lines are left out and counted.
UNREAD_LINES = 10_000
# A process that ends waits this long for the reader of its logs.
CLOSE_SECONDS = 5.0
_RENAMED = {
    "levelname": "level",
    "name": "logger",
    "exc_info": "traceback",
    # logging keeps ``name`` for itself.
    "object": "name",
}
_LEVELS = {
    # At INFO they repeat what metrics show, or print addresses that may be signed.
    **dict.fromkeys(("kopf", "asyncio", "aiohttp.access", "httpx", "httpx2"), logging.WARNING),
    # It warns that it takes no signals outside the main thread, where we take them.
    "kopf._core.reactor.running": logging.ERROR,
}


class JsonFormatter(LibraryFormatter):
    """One line: time, level, logger, message, the record's ``extra`` and any traceback."""

    def __init__(self, fields: Sequence[str] = ()) -> None:
        """``fields``: further attributes of a LogRecord to write, such as ``process``."""
        super().__init__(["levelname", "name", "message", *fields], rename_fields=_RENAMED)

    def add_fields(
        self, log_data: LogData, record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """Puts the time first: RFC 3339, UTC, in milliseconds."""
        made = datetime.fromtimestamp(record.created, UTC)
        log_data["time"] = made.isoformat(timespec="milliseconds")
        super().add_fields(log_data, record, message_dict)


class _LineWriter(logging.handlers.QueueListener):
    """A thread that writes queued lines to a descriptor, every ``GATHER_SECONDS`` at most."""

    def __init__(self, queue: SimpleQueue[str | None], descriptor: int) -> None:
        super().__init__(queue)
        self._lines = queue
        self._descriptor = descriptor
        self._gathered = bytearray()
        self._stopping = threading.Event()
        self._stopped = threading.Event()

    def dequeue(self, block: bool) -> Any:
        if self._lines.empty():
            self._write()
            self._stopping.wait(GATHER_SECONDS)
        line = self._lines.get()
        if line is None:
            self._write()
            self._stopped.set()
        return line

    def handle(self, record: Any) -> None:
        self._gathered += record.encode(errors="replace")
        if len(self._gathered) >= GATHER_BYTES:
            self._write()

    def stop(self) -> None:
        """Returns once everything is written, or after ``CLOSE_SECONDS`` without a reader."""
        if not self._stopping.is_set():
            self._stopping.set()
            self.enqueue_sentinel()
        self._stopped.wait(CLOSE_SECONDS)

    def _write(self) -> None:
        rest = bytes(self._gathered)
        self._gathered.clear()
        # Once the reader is gone, there is nobody to tell.
        with suppress(BrokenPipeError):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]


class _LineHandler(logging.handlers.QueueHandler):
    """Hands each record as a line to the writer; never waits for room."""

    def __init__(self, descriptor: int) -> None:
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        super().__init__(self._lines)
        self.setFormatter(JsonFormatter())
        self._left_out = 0
        self._writer = _LineWriter(self._lines, descriptor)
        self._writer.start()

    def prepare(self, record: logging.LogRecord) -> str:
        return self.format(record) + "\n"

    def enqueue(self, record: Any) -> None:
        if self._lines.qsize() >= UNREAD_LINES:
            self._left_out += 1
            return
        self._report_left_out()
        self._lines.put(record)

    def close(self) -> None:
        """``logging.shutdown`` calls this when the process ends."""
        self._report_left_out()
        self._writer.stop()
        super().close()

    def _report_left_out(self) -> None:
        if self._left_out:
            text = f"{self._left_out} lines are left out here: nobody read the log"
            level = {"levelno": logging.WARNING, "levelname": "WARNING"}
            record = logging.makeLogRecord({"name": __name__, "msg": text, **level})
            self._lines.put(self.prepare(record))
            self._left_out = 0


def configure_logs(level: int = logging.INFO, descriptor: int | None = None) -> None:
    """Sends every log and warning of this process to a descriptor, stderr by default, as JSON.

    A thread writes, so that no caller waits for the reader, and memory is bounded. What a killed
    process logged in its last ``GATHER_SECONDS`` is lost; ``end`` and a normal end lose nothing.
    """
    handler = _LineHandler(sys.stderr.fileno() if descriptor is None else descriptor)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name, least in _LEVELS.items():
        logging.getLogger(name).setLevel(least)


def end(code: int) -> NoReturn:
    """Ends the process at once, other threads included, after the last line is written."""
    sys.stdout.flush()
    logging.shutdown()
    os._exit(code)


def end_with(problem: Problem, code: int) -> NoReturn:
    """Leaves a problem, and ends the process at once, with the children that it has forked."""
    # Imported here: few processes come to this.
    import multiprocessing  # noqa: PLC0415

    leave_problem(problem)
    for child in multiprocessing.active_children():
        child.kill()
    end(code)


def leave_problem(problem: Problem) -> None:
    """Leaves a problem as ``leave_message`` does."""
    leave_message(problem.model_dump())


def leave_message(document: dict[str, object]) -> None:
    """Prints a JSON document and leaves it as the container's termination message."""
    text = json.dumps(document)
    print(text, flush=True)
    path = Path(os.environ.get(TERMINATION_LOG_VARIABLE, TERMINATION_LOG))
    if path.exists():
        path.write_text(text)
