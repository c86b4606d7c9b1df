"""Tasks whose prompts are longer than a run allows. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.api.run.limits import Limits
from espalier.runner.group_sampling import Outcome, Skipped
from espalier.runner.rewards import Group
from espalier.runner.run_end import UserError


def within(limits: Limits, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes, with groups of too long prompts skipped.

    Raises:
        UserError: ``PromptTooLong`` where a task is skipped and ``promptPolicy`` is Fail.
    """
    found = [_within(limits, one) for one in outcomes]
    skipped = next((one for one in found if isinstance(one, Skipped)), None)
    if skipped is not None and limits.prompt_policy == "Fail":
        raise UserError(
            "PromptTooLong",
            f"the prompt of task {skipped.task.id} is too long, and limits.promptPolicy is Fail: "
            f"{skipped.detail}",
            "Shorten the task, raise limits.maxPromptTokens or the model's "
            "rollout.maxModelTokens, or set limits.promptPolicy: Drop",
        )
    return found


def _within(limits: Limits, outcome: Outcome) -> Outcome:
    most = limits.max_prompt_tokens
    if most is None or not isinstance(outcome, Group):
        return outcome
    longest = max(
        (len(turns[0].prompt_token_ids) for turns in outcome.rollouts if turns), default=0
    )
    if longest <= most:
        return outcome
    detail = f"it has {longest} tokens, and limits.maxPromptTokens is {most}"
    return Skipped(outcome.task, detail)
