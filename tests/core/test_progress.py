"""How far a run is, and when it ends: never told from what is more than ten seconds old."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.core.objects import checkpoint, run
from tests.core.run_views import view

from espalier.api.checkpoint import Checkpoint
from espalier.api.run.status import Progress
from espalier.cli.run_progress import standing
from espalier.core.run import run as runs
from espalier.core.run.progress import LATE_SECONDS, progress

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
STEPS = 12
# Seconds that each step takes: even, then one that is far longer, then short ones.
TOOK = [60, 60, 60, 60, 200, 30, 30, 30]


def at(seconds: float) -> str:
    return (BEGIN + timedelta(seconds=seconds)).isoformat()


def committed(seconds: float) -> list[Checkpoint]:
    """The checkpoints that there are after so many seconds."""
    ends = [sum(TOOK[: n + 1]) for n in range(len(TOOK))]
    return [checkpoint(step=n + 1, created=at(end)) for n, end in enumerate(ends) if end <= seconds]


def truth(seconds: float) -> float | None:
    """The end by the pace of the last steps, and by how much later the present one is already."""
    ends = [_made(one) for one in committed(seconds)][-6:]
    if len(ends) < 2:
        return None
    pace = (ends[-1] - ends[0]).total_seconds() / (len(ends) - 1)
    last = (ends[-1] - BEGIN).total_seconds()
    left = STEPS - len(committed(seconds))
    return max(last + pace, seconds) + pace * (left - 1)


def _made(one: Checkpoint) -> datetime:
    return datetime.fromisoformat(one.metadata.creation_timestamp)


def test_what_a_watcher_reads_is_at_most_ten_seconds_from_the_truth_of_the_moment() -> None:
    """The operator looks when a step is committed, and when it said that it would look again."""
    told, again, seen, writes = Progress(), 0.0, 0, 0
    for second in range(sum(TOOK)):
        made = committed(second)
        if len(made) != seen or second >= again:
            before, seen = told, len(made)
            told, after = progress(made, seen, STEPS, at(second), trains=True)
            writes += told != before
            again = second + after if after is not None else float("inf")
        written = {"step": len(made), "progress": told.wire()}
        shown = standing(run(steps=STEPS, status=written), datetime.fromisoformat(at(second)))
        end = truth(second)
        if end is None:
            assert shown.remaining is None
            continue
        assert shown.remaining is not None
        assert abs(second + shown.remaining - end) <= LATE_SECONDS + 1
    # One for each step, and one every ten seconds that a step is late.
    assert writes <= len(TOOK) + 200 / LATE_SECONDS


def test_only_a_run_that_trains_says_when_it_ends() -> None:
    made = [checkpoint(step=n, created=at(60 * n)) for n in (1, 2)]
    trains, looks = progress(made, 2, 10, at(150), trains=True)
    assert trains.estimated_completion_time == at(120 + 8 * 60)
    assert looks == 60 + LATE_SECONDS - 30
    waits, never = progress(made, 2, 10, at(150), trains=False)
    assert (waits.estimated_completion_time, never) == (None, None)
    # A step that is ten times as late may never end: nothing is written any more.
    lost, never = progress(made, 2, 10, at(60 * 60), trains=True)
    assert (lost.estimated_completion_time, never) == (None, None)
    assert lost.estimated_remaining_seconds == 8 * 60
    assert progress(made, 10, 10, at(150), trains=True)[0].percent == 100


def test_the_operator_writes_the_end_and_looks_again_before_it_is_old() -> None:
    made = [checkpoint(step=n, created=f"2026-01-01T00:00:0{n}Z") for n in (1, 2, 3)]
    decision = runs.decide(view(checkpoints=made), "2026-01-01T00:00:03Z")
    assert decision.status.progress is not None
    assert decision.status.progress.estimated_completion_time == "2026-01-01T00:00:10+00:00"
    assert decision.again_seconds == 1 + LATE_SECONDS
