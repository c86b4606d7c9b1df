"""What is told of rewards: metrics by reward, and the failures for the log. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean, pstdev
from typing import Any

from espalier.rewards.failure import Cause
from espalier.rewards.scored import Failed, Scored

# The one reward of a run that declares none; its figures are those of reward/mean.
TASKSET = "taskset"


def by_reward(scores: Sequence[Scored]) -> dict[str, float]:
    """``reward/<name>/mean`` and ``/std`` of each part, before its weight, over the completions
    that have it, and ``/errors`` where it failed. Standard deviations are the population's.
    """
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for score in scores for name in score.parts):
        if name != TASKSET:
            values = [score.parts[name] for score in scores if name in score.parts]
            found[f"reward/{name}/mean"] = fmean(values)
            found[f"reward/{name}/std"] = pstdev(values)
    failed = Counter(one.reward for score in scores for one in score.failures)
    errors = {f"reward/{name}/errors": float(n) for name, n in failed.items() if name != TASKSET}
    return found | errors


def counted(scores: Iterable[Scored]) -> Counter[Cause]:
    """How many rewards could not be had, by cause."""
    return Counter(one.cause for score in scores for one in score.failures)


def told(task: str, scores: Iterable[Scored]) -> list[dict[str, Any]]:
    """For the log: an entry for each reward and cause among the completions of a task, with the
    first detail."""
    first: dict[tuple[str, Cause], Failed] = {}
    seen: Counter[tuple[str, Cause]] = Counter()
    for one in (one for score in scores for one in score.failures):
        first.setdefault((one.reward, one.cause), one)
        seen[one.reward, one.cause] += 1
    return [{"task": task, **one.wire(), "count": seen[key]} for key, one in first.items()]
