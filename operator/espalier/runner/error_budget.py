"""Whether a run bears the rollouts of it that failed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from espalier.api.run.rollout_errors import RolloutErrors
from espalier.rewards.scored import Failed
from espalier.runner.rewards import Group
from espalier.runner.run_end import UserError

# Of the trainer's cursor: how many rollouts of the run had failed by the step.
FIELD = "rollout_errors"
_REMEDY = (
    "See the event scorer-error in the runner's log and mend what fails, or raise {} of "
    "spec.rolloutErrors"
)


def total(cursor: Mapping[str, Any], groups: Sequence[Group]) -> int:
    """The failed rollouts of the run up to and with the groups of a step."""
    before = cursor.get(FIELD, 0)
    return (before if isinstance(before, int) else 0) + len(_failed(groups))


def check(
    rules: RolloutErrors | None, groups: Sequence[Group], cursor: Mapping[str, Any], step: int
) -> None:
    """Looks whether the groups that were sampled for a step leave the run within its bounds.

    Args:
        rules: of the run; None: anything may fail.
        groups: everything sampled for the step so far.
        cursor: of the trainer, before the step.
        step: its number in the run, from 1.

    Raises:
        UserError: ``ErrorBudgetExceeded``, with the first failure.
    """
    failed = _failed(groups)
    if rules is None or not failed:
        return
    rollouts = sum(len(group.scores) for group in groups)
    first = f"the first: {failed[0].cause}: {failed[0].detail}"
    if 100 * len(failed) > rules.max_error_percent * rollouts:
        raise _exceeded(
            f"{len(failed)} of {rollouts} rollouts for step {step} failed, and "
            f"rolloutErrors.maxErrorPercent is {rules.max_error_percent}; {first}",
            "maxErrorPercent",
        )
    of_run = total(cursor, groups)
    if rules.max_errors is not None and of_run > rules.max_errors:
        raise _exceeded(
            f"{of_run} rollouts of the run failed by step {step}, and rolloutErrors.maxErrors is "
            f"{rules.max_errors}; {first}",
            "maxErrors",
        )


def _failed(groups: Sequence[Group]) -> list[Failed]:
    """The first failure of each rollout that has one."""
    return [score.failures[0] for group in groups for score in group.scores if score.failures]


def _exceeded(detail: str, field: str) -> UserError:
    return UserError("ErrorBudgetExceeded", detail, _REMEDY.format(field))
