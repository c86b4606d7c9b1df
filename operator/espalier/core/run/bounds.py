"""What a run has used of its time and budget, and whether a bound of its spec is reached.

Time is kept as what was counted up to a moment, and what counts since then: so a status is written
when that changes and not as time passes, and neither a crash nor another operator loses any of it.
While no operator looks, what was last seen counts on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import reduce

from espalier.api.run.status import TrainingRunStatus, Usage
from espalier.api.trainingrun import TrainingRun, TrainingRunSpec
from espalier.api.wire.commits import Tokens
from espalier.api.wire.problem import Problem
from espalier.core.checkpoints import run_tokens

DEADLINE_EXCEEDED = "DeadlineExceeded"
BUDGET_EXHAUSTED = "BudgetExhausted"
# The status of a run with GPUs is at most so far behind.
USAGE_SECONDS = 60


@dataclass(frozen=True)
class Used:
    """What a run has used so far: seconds with the turn, tokens, seconds times GPUs."""

    active_seconds: int
    tokens: Tokens
    gpu_seconds: int


def recorded(status: TrainingRunStatus) -> Used:
    """What is on record, without what has counted since."""
    usage = status.usage or Usage()
    tokens = Tokens(sampled=usage.sampled_tokens, trained=usage.trained_tokens)
    return Used(status.active_seconds, tokens, usage.gpu_seconds)


def used(status: TrainingRunStatus, heard: Iterable[Tokens], now: str) -> Used:
    """What is used by ``now``; ``heard`` are counts of its tokens, of which none falls."""
    usage = status.usage or Usage()
    active = status.active_seconds + _seconds(status.active_since, now)
    tokens = reduce(run_tokens.most, heard, recorded(status).tokens)
    return Used(active, tokens, usage.gpu_seconds + usage.gpus * _seconds(usage.gpus_since, now))


def reached(spec: TrainingRunSpec, spent: Used) -> Problem | None:
    """The first bound that is reached, with what to edit so that the run goes on."""
    deadline = spec.active_deadline_seconds
    if deadline is not None and spent.active_seconds >= deadline:
        return Problem(
            reason=DEADLINE_EXCEEDED,
            detail=f"the run has had its turn for {spent.active_seconds} s, and "
            f"spec.activeDeadlineSeconds is {deadline}",
            remedy="Raise or remove spec.activeDeadlineSeconds, and it goes on from its last step",
        )
    for field, limit, count in _budget(spec, spent):
        if limit is not None and count >= limit:
            return Problem(
                reason=BUDGET_EXHAUSTED,
                detail=f"{count} are used, and spec.budget.{field} is {limit}",
                remedy=f"Raise or remove spec.budget.{field}, and it goes on from its last step",
            )
    return None


def over(run: TrainingRun) -> bool:
    """Whether a bound of the spec as it is now was reached by what is on record."""
    return reached(run.spec, recorded(run.status)) is not None


def clock(status: TrainingRunStatus, now: str, *, runs: bool) -> tuple[int, str | None]:
    """``activeSeconds`` and ``activeSince`` to write, while the run has its turn or has not."""
    if runs:
        return status.active_seconds, status.active_since or now
    return status.active_seconds + _seconds(status.active_since, now), None


def usage(status: TrainingRunStatus, spent: Used, gpus: int, now: str) -> Usage | None:
    """The usage to write, with ``gpus`` that run from now on; None before anything is used."""
    old = status.usage or Usage()
    same = gpus == old.gpus and _seconds(old.gpus_since, now) < USAGE_SECONDS
    new = Usage(
        sampled_tokens=spent.tokens.sampled,
        trained_tokens=spent.tokens.trained,
        gpu_seconds=old.gpu_seconds if same else spent.gpu_seconds,
        gpus=gpus,
        gpus_since=(old.gpus_since if same else now) if gpus else None,
    )
    return new if new != Usage() else None


def look_again(spec: TrainingRunSpec, spent: Used, gpus: int, *, runs: bool) -> float | None:
    """Seconds until a bound is reached by time alone, or the usage is due; None for neither."""
    waits: list[float] = []
    if runs and spec.active_deadline_seconds is not None:
        waits.append(spec.active_deadline_seconds - spent.active_seconds)
    if gpus:
        waits.append(USAGE_SECONDS)
        if spec.budget is not None and spec.budget.max_gpu_seconds is not None:
            waits.append((spec.budget.max_gpu_seconds - spent.gpu_seconds) / gpus)
    # Clocks tell whole seconds here: sooner would be too soon.
    return max(1.0, min(waits)) if waits else None


def _budget(spec: TrainingRunSpec, spent: Used) -> list[tuple[str, int | None, int]]:
    """Field, limit and use of each part of the budget."""
    budget = spec.budget
    if budget is None:
        return []
    return [
        ("maxSampledTokens", budget.max_sampled_tokens, spent.tokens.sampled),
        ("maxTrainedTokens", budget.max_trained_tokens, spent.tokens.trained),
        ("maxGpuSeconds", budget.max_gpu_seconds, spent.gpu_seconds),
    ]


def _seconds(since: str | None, now: str) -> int:
    """Whole seconds since a moment; 0 without one, and where a clock was set back."""
    if since is None:
        return 0
    gone = datetime.fromisoformat(now) - datetime.fromisoformat(since)
    return max(0, int(gone.total_seconds()))
