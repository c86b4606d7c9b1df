"""What a tracker is, and the run that it shows."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from espalier.client.errors import ConfigurationError

_ID = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,63}")


class Tracker(Protocol):
    """Where a run reports to. It is told on a thread of its own, one call at a time.

    What it raises is a warning and stops no training.
    """

    def start(self, config: Mapping[str, Any]) -> None:
        """The whole configuration, at the start of each fit; again after it failed."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a step."""
        ...

    def finish(self) -> None:
        """No more will come; may be called twice."""
        ...


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker shows.

    Attributes:
        id: the same each time that the run is started again, so that it goes on in one place: the
            UID of a TrainingRun, or one that a script chooses.
        project: groups runs.
        name: for people; the id if empty.
    """

    id: str
    project: str = "espalier"
    name: str = ""

    def __post_init__(self) -> None:
        allowed = "1 to 64 letters, digits, '-', '_' or '.'"
        if not _ID.fullmatch(self.id):
            raise ConfigurationError(
                f"run_id is {self.id!r}: give one of {allowed}, the same each time that the run is "
                "started again"
            )
        if not _ID.fullmatch(self.project):
            raise ConfigurationError(f"project is {self.project!r}: give one of {allowed}")

    @property
    def shown(self) -> str:
        """What people see."""
        return self.name or self.id


def package(name: str, tracker: str) -> Any:
    """The module of a tracker, imported when it is first asked for.

    Args:
        name: of the module.
        tracker: and of the extra that installs it.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f"tracker {tracker} needs the package {name}, which cannot be imported ({error}): "
            f"pip install 'espalier[{tracker}]'"
        ) from error
