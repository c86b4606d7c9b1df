"""How far a run is, and when it will be done at its present pace.

The end is told as a moment, which does not grow old while nothing happens. A step that takes longer
than those before it puts it off, in whole ``LATE_SECONDS``, so that the status is written no more
often than that; and a step that takes far longer leaves the end unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from espalier.api.checkpoint import Checkpoint
from espalier.api.run.status import Progress

PACE_STEPS = 6
# The end that is told is at most so far from the one that the present pace gives.
LATE_SECONDS = 10.0
# A step that is late by more than as many steps, and by more than these seconds, may never end.
LOST_STEPS, LOST_SECONDS = 10.0, 600.0


@dataclass(frozen=True)
class Pace:
    """Seconds of a step, and when the last one was committed."""

    seconds: float
    last: datetime

    @classmethod
    def of(cls, mine: Sequence[Checkpoint]) -> Pace | None:
        """Of the last few steps; None where there are not two."""
        recent = [_time(c.metadata.creation_timestamp) for c in mine[-PACE_STEPS:]]
        if len(recent) < 2:
            return None
        return cls((recent[-1] - recent[0]).total_seconds() / (len(recent) - 1), recent[-1])

    def late(self, now: str) -> float:
        """By how many seconds the step under way is later than those before it."""
        return max(0.0, (_time(now) - self.last).total_seconds() - self.seconds)

    @property
    def lost(self) -> float:
        """By how many seconds a step is so late that nobody knows when it ends."""
        return max(LOST_SECONDS, LOST_STEPS * self.seconds)


def progress(
    mine: Sequence[Checkpoint], step: int, steps: int, now: str, *, trains: bool
) -> tuple[Progress, float | None]:
    """The progress to write, and in how many seconds it is another one without a step.

    Args:
        mine: checkpoints of the run, in the order that they were made.
        step: that are taken, of ``steps``.
        steps: of the run.
        now: RFC 3339.
        trains: whether a step is under way.
    """
    percent, left, pace = min(100, 100 * step // steps), max(0, steps - step), Pace.of(mine)
    if left == 0:
        return Progress(percent=percent, estimated_remaining_seconds=0), None
    if pace is None:
        return Progress(percent=percent), None
    remaining = max(0, round(pace.seconds * left))
    known = Progress(percent=percent, estimated_remaining_seconds=remaining)
    late = pace.late(now)
    if not trains or late >= pace.lost:
        return known, None
    put_off = late // LATE_SECONDS * LATE_SECONDS
    end = pace.last + timedelta(seconds=pace.seconds * left + put_off)
    told = known.model_copy(update={"estimated_completion_time": end.isoformat(timespec="seconds")})
    elapsed = (_time(now) - pace.last).total_seconds()
    return told, max(1.0, pace.seconds + put_off + LATE_SECONDS - elapsed)


def remaining_seconds(progress_: Progress | None, now: datetime) -> int | None:
    """What is left until the end that is told, as of now; None where nothing is known."""
    if progress_ is None:
        return None
    if progress_.estimated_completion_time is None:
        return progress_.estimated_remaining_seconds
    end = _time(progress_.estimated_completion_time)
    return max(0, round((end - now).total_seconds()))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
