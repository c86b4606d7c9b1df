"""Plays groups of rollouts of an environment through the gateway, many at a time."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from espalier.loop.sample_metrics import TOLERANCE
from espalier.loop.session import Policy, Sampler, Session
from espalier.rewards import Failure, Given, Rewards, Scored
from espalier.rewards.number import Range
from espalier.runner.group_sampling import NOTHING, Outcome, Skipped, score_group
from espalier.runner.in_flight import in_flight
from espalier.runner.played_rewards import Played
from espalier.runner.rewards import Group
from espalier.runner.task_protocol import Task
from espalier.runner.together import together
from espalier.runner.tries import GroupTime, Seeds, Tries

# What is in flight the rollouts batch; more would only wait in their queues.
CONCURRENT_ROLLOUTS = 256

# Whose sums stay finite.
_ALLOWED = Range(-LARGEST, LARGEST)


class RunSampler:
    """The gateway's client with what a run says of sampling beside temperature and length.

    Args:
        client: of the model.
        sampling: of the run.
        tries: bound each request.
    """

    def __init__(self, client: Sampler, sampling: RunSampling, tries: Tries) -> None:
        self._client = client
        self._fields = sampling.request()
        self._tries = tries

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
        """As the client does it; what a turn says goes before what the run says.

        Raises:
            RolloutFailedError: it took longer than the run's ``timeouts.sampleSeconds``.
        """
        return await self._tries.sampled(
            self._client.sample(
                messages,
                max_tokens=max_tokens,
                checkpoint=checkpoint,
                count=count,
                temperature=temperature,
                extra={**self._fields, **(extra or {})},
            )
        )


@dataclass(frozen=True)
class Playing:
    """How tasks are played: by how many rollouts each, and how those sample and are tried.

    ``place`` goes before a task's number where seeds are drawn; ``concurrent`` rollouts at a time.
    """

    group_size: int
    sampling: Sampling
    fields: RunSampling
    tries: Tries
    seed: int | None = None
    place: tuple[str, ...] = ()
    tolerance: float = TOLERANCE
    concurrent: int = CONCURRENT_ROLLOUTS

    @classmethod
    def of(cls, spec: TrainingRunSpec) -> Playing:
        """As a run plays its own tasks."""
        return cls(
            spec.group_size,
            Sampling(spec.sampling.max_tokens, decimal(spec.sampling.temperature)),
            spec.sampling,
            Tries.of(spec),
            spec.seed,
            tolerance=spec.group_filter.equal_within,
        )


async def play_groups(
    client: Sampler,
    environment: Environment,
    rewards: Rewards,
    numbers: Sequence[int],
    *,
    how: Playing,
    checkpoint: str,
) -> list[Outcome]:
    """A group of rollouts for each task, each with its reward.

    Args:
        client: of the model.
        environment: around whose tasks the numbers go.
        rewards: of the run: what the environment pays (``played_rewards``).
        numbers: of the tasks in the run, in the order of the result.
        how: of all of them.
        checkpoint: name of the checkpoint to sample; empty for the base.

    Raises:
        UserError: ``ScorerFailed`` where ``taskset.onError`` says so.
    """
    tries = how.tries
    sampler = RunSampler(client, how.fields, tries)
    policy = Policy(sampler, checkpoint or BASE, how.sampling)
    slots = asyncio.Semaphore(how.concurrent)

    async def one(task: Task, name: str, place: int, time: GroupTime, seeds: Seeds) -> Played:
        async with slots:
            with in_flight(1):
                return await tried(task, name, place, time, seeds)

    async def tried(task: Task, name: str, place: int, time: GroupTime, seeds: Seeds) -> Played:
        again = 0
        while True:
            rollout = Rollout(task_id=task.id, rollout_idx=place, group_id=name)
            session = Session(policy, rollout, partial(seeds.of, place, again))
            given = await _in_time(time, _given(environment, task, session))
            if given.failure is None or again >= tries.retries or time.over:
                break
            again += 1
        # Nothing can be learned from a turn in which nothing was sampled.
        turns = tuple(turn for turn in rollout.turns if turn.token_ids)
        return Played(turns, given, again)

    async def group(number: int) -> Outcome:
        index = number % environment.size
        task, name, time = environment.task(index), uuid.uuid4().hex, tries.group()
        seeds = Seeds(how.seed, (*how.place, number))
        try:
            played = await together(
                one(task, name, place, time, seeds) for place in range(how.group_size)
            )
        except InvalidRequestError as refused:
            if not refused.is_too_long:
                raise
            return Skipped(task, refused.problem.detail)
        scores = await score_group(rewards, index, task, played)
        last = tuple(given.turns[-1] if given.turns else NOTHING for given in played)
        turns = tuple(given.turns for given in played)
        return Group(
            task,
            last,
            tuple(map(_trainable, scores, turns)),
            checkpoint,
            turns,
            how.tolerance,
            sum(given.retries for given in played),
            tries.least,
        )

    return await together(group(number) for number in numbers)


async def _in_time(time: GroupTime, rollout: Awaitable[Given]) -> Given:
    try:
        return await time.within(rollout)
    except RolloutFailedError as late:
        return Given(None, Failure.of(late.cause, late.detail))


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
