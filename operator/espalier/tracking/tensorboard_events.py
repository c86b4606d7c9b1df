"""The tracker of TensorBoard: event files in a directory."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espalier.tracking.tracker import TrackedRun, package


class TensorBoard:
    """Writes event files under ``<directory>/<project>/<id>``, which each start adds one to.

    A step that comes after a later one takes the later ones back: a rollback moved the run.
    """

    def __init__(self, run: TrackedRun, directory: Path) -> None:
        self._board = package("tensorboardX", "tensorboard")
        self._run = run
        self._path = directory / run.project / run.id
        # Here, so that a wrong path is known before anything is trained.
        self._path.mkdir(parents=True, exist_ok=True)
        self._writer: Any = None
        self._last = -1

    def start(self, config: Mapping[str, Any]) -> None:
        """The configuration as a text: TensorBoard's page ``Text``."""
        self._open(None)
        shown = json.dumps({"name": self._run.shown, **config}, indent=2, default=str)
        self._writer.add_text("config", f"```json\n{shown}\n```")
        self._writer.flush()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A scalar for each metric."""
        if step < self._last:
            self._writer.close()
            self._open(step)
        self._last = step
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, purge_step: int | None) -> None:
        # A file is named by the second: two of one second would be one.
        suffix = f".{time.time_ns()}"
        self._writer = self._board.SummaryWriter(
            str(self._path), purge_step=purge_step, filename_suffix=suffix
        )
