"""What becomes of a finished run after ``ttlSecondsAfterFinished``.

As with a Job, it is deleted. But where Argo CD or Flux brings the run from Git, or ``espalier dev``
from its directory, it would be made again, as another run that trains all of its steps anew: there
only what it made of pods goes, and the run stays until it is dropped there. Its Checkpoints have no
owner and stay in either case.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from espalier.api.meta import Condition
from espalier.api.trainingrun import TrainingRun
from espalier.core import conditions
from espalier.core.gitowner import GitOwner
from espalier.core.run.turn import SUCCEEDED


@dataclass(frozen=True)
class Expiry:
    """How long a finished run still has; ``seconds`` of 0 or less: it is over.

    ``kept`` says who would make the run again; empty: nobody, so that it may be deleted.
    """

    seconds: float
    kept: str = ""

    @property
    def due(self) -> bool:
        """Whether its time is over."""
        return self.seconds <= 0

    @property
    def wait(self) -> float | None:
        """Seconds until it is over; None if it is."""
        return None if self.due else self.seconds


def finished(run: TrainingRun) -> Condition | None:
    """The condition by which the run as it is specified now has ended, as its status says."""
    found = conditions.find(run.status.conditions, SUCCEEDED)
    if found is None or found.status == "Unknown":
        return None
    return found if found.observed_generation == run.metadata.generation else None


def expiry(run: TrainingRun, owner: GitOwner | None, now: str) -> Expiry | None:
    """How long the run still has; None for one that has not ended, or that stays for ever."""
    ended, limit = finished(run), run.spec.ttl_seconds_after_finished
    if ended is None or limit is None:
        return None
    gone = datetime.fromisoformat(now) - datetime.fromisoformat(ended.last_transition_time)
    return Expiry(limit - gone.total_seconds(), str(owner) if owner is not None else "")


def kept_message(kept: str) -> str:
    """Why a run whose time is over is still there."""
    return (
        f"ttlSecondsAfterFinished is over and the runner's Job is gone; the run stays, for {kept} "
        "applies it and would make it again: remove it there"
    )
