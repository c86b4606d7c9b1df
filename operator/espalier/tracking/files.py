"""The tracker of a file: lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonLines:
    """Writes the configuration and each step's metrics as lines of JSON; several fits go on."""

    def __init__(self, path: Path) -> None:
        # Opened here, so that a wrong path is known before anything is trained.
        self._file = path.open("a")
        self._path = path

    def start(self, config: Mapping[str, Any]) -> None:
        """First line of a fit: ``{"config": …}``."""
        if self._file.closed:
            self._file = self._path.open("a")
        self._write({"config": config})

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line: ``{"step": …, "metrics": …}``."""
        self._write({"step": step, "metrics": dict(metrics)})

    def finish(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
