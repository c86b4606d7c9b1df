"""Logs as one JSON object per line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Protocol

# What logging itself puts on a record; everything else came through ``extra``.
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
# logging keeps ``name`` for itself.
_RENAMED = {"object": "name"}
_LEVELS = {
    # kopf reports every connection it makes; what it does for us shows in metrics.
    "kopf": logging.WARNING,
    # It warns that it takes no signals outside the main thread, where we take them.
    "kopf._core.reactor.running": logging.ERROR,
    "asyncio": logging.WARNING,
    "aiohttp.access": logging.WARNING,
}


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, what came as ``extra`` (``object`` is name), any traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        given = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        entry |= {_RENAMED.get(name, name): value for name, value in given.items()}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class Stream(Protocol):
    """Where lines go."""

    def write(self, text: str, /) -> object:
        """Takes a text."""

    def flush(self) -> object:
        """Called after each line."""


def configure(level: int = logging.INFO, stream: Stream | None = None) -> None:
    """Send every log of this process to the stream, stderr by default, as JSON."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name, least in _LEVELS.items():
        logging.getLogger(name).setLevel(least)
