"""The tracker of trackio: SQLite files in a directory, or a server of trackio's own."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espalier.client.errors import ConfigurationError
from espalier.tracking.tracker import TrackedRun, package

logger = logging.getLogger(__name__)

# Read by trackio when it is imported, once a process.
_DIRECTORY = "TRACKIO_DIR"
_MODULES = ("trackio", "trackio.utils", "trackio.run")


class Trackio:
    """One run of trackio for all starts of a run: its name is the id, its group the name.

    After a rollback the steps that are taken anew stand beside the old ones.

    Args:
        run: trackio goes on by its id.
        directory: of trackio's files; None: as ``TRACKIO_DIR``, ``TRACKIO_SERVER_URL`` and others
            of trackio's variables say.
    """

    def __init__(self, run: TrackedRun, directory: Path | None = None) -> None:
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            os.environ[_DIRECTORY] = str(directory)
        modules = [package(name, "trackio") for name in _MODULES]
        self._trackio, used = modules[0], modules[1].TRACKIO_DIR
        if directory is not None and Path(used) != directory:
            raise ConfigurationError(
                f"trackio writes to {used} in this process, and {directory} is asked for: use one "
                "directory in a process"
            )
        # They print, and the output of a runner is its journal.
        for module in modules:
            vars(module)["print"] = _told
        self._run = run
        self._shown: Any = None

    def start(self, config: Mapping[str, Any]) -> None:
        """Goes on in the run of that id, or begins it; the configuration is its ``config``."""
        self._shown = self._trackio.init(
            project=self._run.project,
            name=self._run.id,
            group=self._run.shown,
            config=dict(config),
            resume="allow",
            # Nothing of the machine but the metrics, and no page.
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A row of the run; trackio writes it on a thread of its own."""
        self._shown.log(dict(metrics), step=step)

    def finish(self) -> None:
        """Waits for what is not written yet."""
        if self._shown is not None:
            self._shown.finish()
            self._shown = None


def _told(*words: object, **_: object) -> None:
    logger.debug("trackio: %s", " ".join(map(str, words)))
