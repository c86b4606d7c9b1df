"""The runner's log: each event is a log line with its fields."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger("espalier.runner")


class Journal:
    """Logs the events of one run, named <namespace>/<TrainingRun>."""

    def __init__(self, run: str) -> None:
        self._run = run

    def event(self, name: str, **fields: Any) -> None:
        """One line; beside what every log line has: run, event and the given fields."""
        logger.info(name, extra={"run": self._run, "event": name, **fields})
