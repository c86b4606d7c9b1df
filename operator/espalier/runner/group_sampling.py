"""Samples groups of completions through the gateway, many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from espalier.api.meta import decimal
from espalier.api.trainingrun import TrainingRunSpec
from espalier.client import InvalidRequestError
from espalier.core.names import BASE
from espalier.loop.session import Sampler
from espalier.rewards import RewardFailedError, Rewards, Scored
from espalier.rewards.scored import Written
from espalier.runner.rewards import Group
from espalier.runner.run_end import UserError
from espalier.runner.task_protocol import Task, Tasks
from espalier.runner.together import together

# The rollouts batch what is in flight; more would only wait in their queues.
CONCURRENT_GROUPS = 64


@dataclass(frozen=True)
class Skipped:
    """A task that cannot be asked: with the completion, its prompt exceeds the context."""

    task: Task
    detail: str


# What comes of a task.
Outcome = Group | Skipped


async def sample_groups(
    client: Sampler,
    tasks: Tasks,
    rewards: Rewards,
    indices: Sequence[int],
    *,
    spec: TrainingRunSpec,
    checkpoint: str,
) -> list[Outcome]:
    """A scored group of ``spec.group_size`` completions for each task, or why there is none.

    Args:
        client: of the model.
        tasks: where the indices point.
        rewards: of the run, on these tasks.
        indices: of the tasks, in the order of the result.
        spec: group size and sampling.
        checkpoint: name of the checkpoint to sample; empty for the base.

    Raises:
        UserError: ``ScorerFailed`` where onError says so.
    """
    slots = asyncio.Semaphore(CONCURRENT_GROUPS)

    async def group(index: int) -> Outcome:
        task = tasks.task(index)
        # No seed in the request: with chunked prefill a seeded one ends vLLM's engine on CPU.
        try:
            async with slots:
                completions = await client.sample(
                    [message.wire() for message in task.messages],
                    checkpoint=checkpoint or BASE,
                    count=spec.group_size,
                    temperature=decimal(spec.sampling.temperature),
                    max_tokens=spec.sampling.max_tokens,
                    extra=spec.sampling.request(),
                )
        except InvalidRequestError as refused:
            if not refused.is_too_long:
                raise
            return Skipped(task, refused.problem.detail)
        scores = await score_group(rewards, index, task, completions)
        return Group(task, tuple(completions), tuple(scores), checkpoint)

    return await together(group(index) for index in indices)


async def score_group(
    rewards: Rewards, index: int, task: Task, written: Sequence[Written]
) -> list[Scored]:
    """The scores of what was written for one task; UserError ``ScorerFailed`` where onError says
    Fail."""
    try:
        return await rewards.score(index, task, written)
    except RewardFailedError as failed:
        raise UserError("ScorerFailed", failed.detail, failed.remedy) from failed
