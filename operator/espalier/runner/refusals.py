"""What a runner cannot drive, and what no round of sampling will change."""

from __future__ import annotations

from espalier.api.trainingrun import TrainingRunSpec
from espalier.client import ConfigurationError
from espalier.loop.minibatches import Uses
from espalier.loop.recipe import Attempt
from espalier.runner.declared_step import open_schedule, sampled
from espalier.runner.failing_rewards import failing
from espalier.runner.group_sampling import Outcome, Skipped
from espalier.runner.rewards import kept, uninformative
from espalier.runner.run_end import UserError


def check(spec: TrainingRunSpec) -> None:
    """Refuses what a run of an older version may hold, and the API server admits no more."""
    if spec.advantage.source != "Estimated":
        raise UserError(
            "AdvantageSourceInvalid",
            f"advantage.source is {spec.advantage.source}, and no taskset gives advantages",
            "Set spec.advantage.source to Estimated, or train with driver: Client",
        )
    try:
        open_schedule(spec.schedule).check(Uses(spec.batch.minibatches, spec.batch.epochs))
    except ConfigurationError as refused:
        raise UserError(
            "BatchInvalid", str(refused), "Set spec.batch and spec.schedule to go together"
        ) from refused


def without_signal(attempt: Attempt[Outcome], spec: TrainingRunSpec, minibatches: int) -> UserError:
    """Why no step could be taken with anything that was sampled."""
    groups, rules = sampled(attempt.groups), spec.group_filter
    if teaching := len(kept(groups, rules)):
        needed = f"groupFilter.minGroups is {rules.min_groups}"
        if minibatches > 1:
            needed += f" of each of {minibatches} minibatches"
        return UserError(
            "RewardsUninformative",
            f"in {attempt.rounds} rounds {teaching} of {len(groups)} groups teach, and {needed}",
            "Lower groupFilter.minGroups, or choose tasks nearer to what the model can do",
        )
    if groups:
        detail, remedy = uninformative(groups, attempt.rounds)
        if failed := failing(groups, spec):
            detail, remedy = f"{detail}: {failed[0]}", failed[1] or remedy
        return UserError("RewardsUninformative", detail, remedy)
    first = next(one for one in attempt.groups if isinstance(one, Skipped))
    return UserError(
        "PromptTooLong",
        f"in {attempt.rounds} rounds no prompt of a task fitted, the first of them "
        f"{first.task.id}: {first.detail}",
        "Ask shorter tasks, lower sampling.maxTokens, or raise limits.maxPromptTokens or the "
        "model's rollout.maxModelTokens",
    )
