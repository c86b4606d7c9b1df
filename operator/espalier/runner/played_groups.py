"""Plays groups of rollouts of an environment through the gateway, many at a time."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from espalier.api.meta import decimal
from espalier.api.run.rewards import LARGEST
from espalier.api.run.sampling import Sampling as RunSampling
from espalier.api.trainingrun import TrainingRunSpec
from espalier.client import InvalidRequestError
from espalier.client.completion import Completion
from espalier.client.gateway import Message
from espalier.client.rollout import Rollout
from espalier.client.sampling import Sampling
from espalier.core.names import BASE
from espalier.environments.environment import Environment, play
from espalier.environments.errors import RolloutFailedError
from espalier.loop.session import Policy, Sampler, Session
from espalier.rewards import Failure, Given, Rewards, Scored
from espalier.rewards.number import Range
from espalier.runner.group_sampling import Outcome, Skipped, score_group
from espalier.runner.played_rewards import Played
from espalier.runner.rewards import Group
from espalier.runner.task_protocol import Task
from espalier.runner.together import together

# What is in flight the rollouts batch; more would only wait in their queues.
CONCURRENT_ROLLOUTS = 256

# Whose sums stay finite.
_ALLOWED = Range(-LARGEST, LARGEST)

# Stands for the completion of a rollout that ended before its first one.
_NOTHING = Completion("", (), (), (), "error")


class RunSampler:
    """The gateway's client with what a run says of sampling beside temperature and length."""

    def __init__(self, client: Sampler, sampling: RunSampling) -> None:
        self._client = client
        self._fields = sampling.request()

    async def sample(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        checkpoint: str = "",
        count: int = 1,
        temperature: float = 1.0,
        extra: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """As the client does it; what a turn says goes before what the run says."""
        return await self._client.sample(
            messages,
            max_tokens=max_tokens,
            checkpoint=checkpoint,
            count=count,
            temperature=temperature,
            extra={**self._fields, **(extra or {})},
        )


async def play_groups(
    client: Sampler,
    environment: Environment,
    rewards: Rewards,
    indices: Sequence[int],
    *,
    spec: TrainingRunSpec,
    checkpoint: str,
) -> list[Outcome]:
    """A group of ``spec.group_size`` rollouts for each task, each with its reward.

    Args:
        client: of the model.
        environment: where the indices point.
        rewards: of the run: what the environment pays (``played_rewards``).
        indices: of the tasks, in the order of the result.
        spec: group size and sampling.
        checkpoint: name of the checkpoint to sample; empty for the base.

    Raises:
        UserError: ``ScorerFailed`` where ``taskset.onError`` says so.
    """
    sampling = Sampling(spec.sampling.max_tokens, decimal(spec.sampling.temperature))
    policy = Policy(RunSampler(client, spec.sampling), checkpoint or BASE, sampling)
    slots = asyncio.Semaphore(CONCURRENT_ROLLOUTS)

    async def one(task: Task, group: str, number: int) -> Played:
        rollout = Rollout(task_id=task.id, rollout_idx=number, group_id=group)
        async with slots:
            given = await _given(environment, task, Session(policy, rollout))
        # Nothing can be learned from a turn in which nothing was sampled.
        return Played(tuple(turn for turn in rollout.turns if turn.token_ids), given)

    async def group(index: int) -> Outcome:
        task = environment.task(index)
        name = uuid.uuid4().hex
        try:
            played = await together(one(task, name, i) for i in range(spec.group_size))
        except InvalidRequestError as refused:
            if not refused.is_too_long:
                raise
            return Skipped(task, refused.problem.detail)
        scores = await score_group(rewards, index, task, played)
        last = tuple(given.turns[-1] if given.turns else _NOTHING for given in played)
        turns = tuple(given.turns for given in played)
        return Group(task, last, tuple(map(_trainable, scores, turns)), checkpoint, turns)

    return await together(group(index) for index in indices)


async def _given(environment: Environment, task: Task, session: Session) -> Given:
    try:
        reward = await play(environment, task, session)
    except RolloutFailedError as failed:
        return Given(None, Failure.of(failed.cause, failed.detail))
    if not session.rollout.turns:
        return Given(None, Failure.of("Malformed", "it ended before the model's first turn"))
    return Given.of(_ALLOWED.judge(reward))


def _trainable(score: Scored, turns: Sequence[Completion]) -> Scored:
    """Where nothing was sampled there is nothing to train, whatever it is worth."""
    return score if turns else replace(score, reward=None, advantage=None)
