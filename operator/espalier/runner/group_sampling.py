"""Samples groups of completions through the gateway, many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from espalier.api.meta import decimal
from espalier.api.trainingrun import TrainingRunSpec
from espalier.client import InvalidRequestError
from espalier.client.completion import Completion
from espalier.core.names import BASE
from espalier.environments.errors import RolloutFailedError
from espalier.loop.session import Sampler
from espalier.rewards import Failed, Failure, RewardFailedError, Rewards, Scored
from espalier.rewards.figures import TASKSET
from espalier.rewards.scored import Written
from espalier.runner import prometheus
from espalier.runner.in_flight import in_flight
from espalier.runner.rewards import Group
from espalier.runner.run_end import UserError
from espalier.runner.task_protocol import Task, Tasks
from espalier.runner.together import together
from espalier.runner.tries import GroupTime, Seeds, Tries

# The rollouts batch what is in flight; more would only wait in their queues.
CONCURRENT_GROUPS = 64

# Stands for the completion of a rollout that failed before its first one.
NOTHING = Completion("", (), (), (), "error")


@dataclass(frozen=True)
class Skipped:
    """A task that is not trained on: its prompt exceeds the context, or the run's limits."""

    task: Task
    detail: str


# What comes of a task.
Outcome = Group | Skipped


async def sample_groups(
    client: Sampler,
    tasks: Tasks,
    rewards: Rewards,
    numbers: Sequence[int],
    *,
    spec: TrainingRunSpec,
    checkpoint: str,
) -> list[Outcome]:
    """A scored group of ``spec.group_size`` completions for each task, or why there is none.

    Args:
        client: of the model.
        tasks: around which the numbers go.
        rewards: of the run, on these tasks.
        numbers: of the tasks in the run, in the order of the result.
        spec: group size, sampling, seed, timeouts and retries.
        checkpoint: name of the checkpoint to sample; empty for the base.

    Raises:
        UserError: ``ScorerFailed`` where onError says so.
    """
    slots = asyncio.Semaphore(CONCURRENT_GROUPS)
    tries, tolerance = Tries.of(spec), spec.group_filter.equal_within

    async def group(number: int) -> Outcome:
        index = number % tasks.size
        task, time, seeds = tasks.task(index), tries.group(), Seeds(spec.seed, (number,))
        try:
            async with slots:
                with in_flight(spec.group_size):
                    completions, retries = await _asked(
                        client, task, time, seeds=seeds, spec=spec, checkpoint=checkpoint
                    )
            scores = await time.within(score_group(rewards, index, task, completions))
        except InvalidRequestError as refused:
            if not refused.is_too_long:
                raise
            return Skipped(task, refused.problem.detail)
        except RolloutFailedError as failed:
            return _nothing(task, failed, spec, checkpoint)
        return Group(
            task,
            tuple(completions),
            tuple(scores),
            checkpoint,
            tolerance=tolerance,
            retries=retries,
            least=tries.least,
        )

    return await together(group(number) for number in numbers)


async def _asked(
    client: Sampler,
    task: Task,
    time: GroupTime,
    *,
    seeds: Seeds,
    spec: TrainingRunSpec,
    checkpoint: str,
) -> tuple[list[Completion], int]:
    """The completions of a group and how often they were asked for again.

    Raises:
        RolloutFailedError: every try took too long.
    """
    tries, again = Tries.of(spec), 0
    while True:
        asked = client.sample(
            [message.wire() for message in task.messages],
            checkpoint=checkpoint or BASE,
            count=spec.group_size,
            temperature=decimal(spec.sampling.temperature),
            max_tokens=spec.sampling.max_tokens,
            extra=spec.sampling.request() | seeds.fields(again),
        )
        try:
            return await time.within(tries.sampled(asked)), again
        except RolloutFailedError:
            if again >= tries.retries or time.over:
                raise
            again += 1


def _nothing(
    task: Task, failed: RolloutFailedError, spec: TrainingRunSpec, checkpoint: str
) -> Group:
    """A group that nothing came of in its time."""
    failure = Failure.of(failed.cause, failed.detail)
    score = Scored(None, failures=(Failed(TASKSET, failure.cause, failure.detail),))
    size = spec.group_size
    return Group(task, (NOTHING,) * size, (score,) * size, checkpoint, ((),) * size)


async def score_group(
    rewards: Rewards, index: int, task: Task, written: Sequence[Written]
) -> list[Scored]:
    """The scores of what was written for one task; UserError ``ScorerFailed`` where onError says
    Fail."""
    try:
        with prometheus.REWARD_SECONDS.time():
            return await rewards.score(index, task, written)
    except RewardFailedError as failed:
        raise UserError("ScorerFailed", failed.detail, failed.remedy) from failed
