"""Several trackers as one, of which none can stop or slow a run, and trackers by name."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from espalier.client.errors import ConfigurationError
from espalier.tracking.console import Console
from espalier.tracking.delivery import Delivery
from espalier.tracking.files import JsonLines
from espalier.tracking.mlflow_server import MLflow
from espalier.tracking.redaction import redacted, secrets_of
from espalier.tracking.tensorboard_events import TensorBoard
from espalier.tracking.tracker import TrackedRun, Tracker
from espalier.tracking.trackio_run import Trackio
from espalier.tracking.wandb_run import WeightsAndBiases

__all__ = ["Tracker", "TrackerWarning", "Trackers", "track"]

# For all trackers together, at the end of a run.
FINISH_SECONDS = 30.0
FAILED, DROPPED = "tracking/failed", "tracking/dropped"


class TrackerWarning(UserWarning):
    """A tracker failed or is slow; the run goes on without what it was told."""


def _warn(message: str) -> None:
    warnings.warn(message, TrackerWarning, stacklevel=4)


class Trackers:
    """Several trackers as one.

    Args:
        trackers: each is told on a thread of its own.
        warn: takes a sentence about a tracker that failed or is slow, on the caller's thread.
        finish_seconds: that all trackers together may take to end.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker],
        *,
        warn: Callable[[str], None] = _warn,
        finish_seconds: float = FINISH_SECONDS,
    ) -> None:
        self._deliveries = [Delivery(tracker) for tracker in trackers]
        self._warn = warn
        self._seconds = finish_seconds

    def start(self, config: Mapping[str, Any]) -> None:
        """The whole configuration; secrets are taken out of it."""
        clean = redacted(config, secrets_of(os.environ))
        for delivery in self._deliveries:
            delivery.start(clean)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a step, and what trackers did not take, if anything."""
        seen = {**metrics, **self.metrics()}
        for delivery in self._deliveries:
            delivery.log(step, seen)
        self._tell()

    def finish(self) -> None:
        """Waits for the trackers, for a bounded time; twice is fine."""
        ends = time.monotonic() + self._seconds
        for delivery in self._deliveries:
            delivery.end()
        for delivery in self._deliveries:
            delivery.ended(ends)
        self._tell()

    def metrics(self) -> dict[str, float]:
        """Calls of trackers that failed and steps that they were not told, where there are any."""
        told = [delivery.told for delivery in self._deliveries]
        counts = {FAILED: sum(f for f, _ in told), DROPPED: sum(d for _, d in told)}
        return {name: float(count) for name, count in counts.items() if count}

    def _tell(self) -> None:
        for delivery in self._deliveries:
            for message in delivery.messages():
                self._warn(message)


def track(
    names: Sequence[str],
    directory: Path,
    *,
    run_id: str = "",
    project: str = "espalier",
    run_name: str = "",
) -> list[Tracker]:
    """Trackers by name; those of others are set up by their own environment variables.

    Args:
        names: console, file, wandb, mlflow, tensorboard, trackio.
        directory: for what they write; TensorBoard reads ``<directory>/tensorboard``.
        run_id: the same each time that the run is started again, so that it goes on in one place;
            all but console and file need it.
        project: groups runs; MLflow calls it an experiment.
        run_name: for people; the id if empty.

    Raises:
        ConfigurationError: there is none of that name, its package is not installed, or it lacks a
            setting.
    """

    def run() -> TrackedRun:
        return TrackedRun(run_id, project, run_name)

    known: dict[str, Callable[[], Tracker]] = {
        "console": Console,
        "file": lambda: JsonLines(directory / "metrics.jsonl"),
        "wandb": lambda: WeightsAndBiases(run(), directory),
        "mlflow": lambda: MLflow.from_environment(run(), os.environ),
        "tensorboard": lambda: TensorBoard(run(), directory / "tensorboard"),
        "trackio": lambda: Trackio(run()),
    }
    for name in names:
        if name not in known:
            raise ConfigurationError(f"no tracker is called {name}; there are: {', '.join(known)}")
    return [known[name]() for name in names]
