"""The runner's log: one JSON object a line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, TextIO


class Journal:
    """Writes events of one run to a stream."""

    def __init__(self, run: str, stream: TextIO) -> None:
        self._run = run
        self._stream = stream

    def event(self, name: str, **fields: Any) -> None:
        """One line: time, run, event and the given fields."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "run": self._run, "event": name, **fields}
        print(json.dumps(line), file=self._stream, flush=True)
