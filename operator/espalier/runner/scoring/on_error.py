"""What a score that could not be had is worth: ``taskset.onError``. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from espalier.runner.run_end import UserError
from espalier.runner.scorer_spec import Cause
from espalier.runner.task_protocol import Score, Task

OnError = Literal["DropGroup", "Zero", "Fail"]
REMEDY = (
    "Let taskset.onError say what such answers are worth (DropGroup or Zero), say in "
    "taskset.promptTemplate how to answer, or raise taskset.scoreTimeoutSeconds for slow scorers"
)


def settled(task: Task, scores: Iterable[Score], policy: OnError) -> tuple[Score, ...]:
    """The scores under the policy: under Zero each has a reward, under DropGroup some have none.

    Raises:
        UserError: ``ScorerFailed`` under Fail, naming the task.
    """
    given = tuple(scores)
    for score in given:
        if policy == "Fail" and score.failure is not None:
            why = score.failure
            raise UserError("ScorerFailed", f"task {task.id}: {why.cause}: {why.detail}", REMEDY)
    if policy == "Zero":
        return tuple(Score(0.0, s.failure) if s.failure is not None else s for s in given)
    return given


def counted(scores: Iterable[Score]) -> Counter[Cause]:
    """How many could not be had, by cause."""
    return Counter(score.failure.cause for score in scores if score.failure is not None)


def told(task: Task, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """For the log: an entry for each cause among the scores of a task, with its first detail."""
    first: dict[Cause, str] = {}
    for score in scores:
        if score.failure is not None:
            first.setdefault(score.failure.cause, score.failure.detail)
    seen = counted(scores)
    return [
        {"task": task.id, "cause": cause, "count": seen[cause], "detail": detail}
        for cause, detail in first.items()
    ]
