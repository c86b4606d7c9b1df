"""Where a fit reports to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from espalier.api.metrics import STEP_REWARD
from espalier.client.errors import ConfigurationError


class Tracker(Protocol):
    """Where a fit reports to."""

    def start(self, config: Mapping[str, Any]) -> None:
        """The whole configuration, once."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a step."""
        ...

    def finish(self) -> None:
        """No more will come; may be called twice."""
        ...


class JsonLines:
    """Writes the configuration and each step's metrics as lines of JSON."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def start(self, config: Mapping[str, Any]) -> None:
        """First line: ``{"config": …}``."""
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


class Console:
    """Prints a line a step."""

    def start(self, config: Mapping[str, Any]) -> None:
        """Says nothing."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step, reward and loss."""
        shown = [f"{name} {value:.3f}" for name, value in metrics.items() if name in _SHOWN]
        print(f"step {step:4d}  " + "  ".join(shown), flush=True)

    def finish(self) -> None:
        """Says nothing."""


_SHOWN = (STEP_REWARD, "loss:sum", "val/reward/mean", "group/excluded", "group/dropped")


def track(names: Sequence[str], directory: Path) -> list[Tracker]:
    """Trackers by name.

    Raises:
        ConfigurationError: there is none of that name.
    """
    known: dict[str, Callable[[], Tracker]] = {
        "console": Console,
        "file": lambda: JsonLines(directory / "metrics.jsonl"),
    }
    for name in names:
        if name not in known:
            raise ConfigurationError(f"no tracker is called {name}; there are: {', '.join(known)}")
    return [known[name]() for name in names]
