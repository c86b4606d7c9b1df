"""Plays groups of rollouts of an environment through the gateway, many at a time."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from espalier.api.meta import decimal
from espalier.api.run.sampling import Sampling as RunSampling
from espalier.api.trainingrun import TrainingRunSpec
from espalier.client import GatewayClient, InvalidRequestError
from espalier.client.completion import Completion
from espalier.client.gateway import Message
from espalier.client.rollout import Rollout
from espalier.client.sampling import Sampling
from espalier.core.names import BASE
from espalier.environments.conversation import TOO_LONG
from espalier.environments.environment import Environment, play
from espalier.environments.errors import RolloutFailedError
from espalier.loop.session import Policy, Session
from espalier.runner.group_sampling import Sampled, Skipped
from espalier.runner.rewards import Group
from espalier.runner.scorer_spec import Failure
from espalier.runner.scoring.on_error import settled
from espalier.runner.task_protocol import Score, Task

# What is in flight the rollouts batch; more would only wait in their queues.
CONCURRENT_ROLLOUTS = 256

# Stands for the completion of a rollout that ended before its first one.
_NOTHING = Completion("", (), (), (), "error")


class RunSampler:
    """The gateway's client with what a run says of sampling beside temperature and length."""

    def __init__(self, client: GatewayClient, sampling: RunSampling) -> None:
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
    client: GatewayClient,
    environment: Environment,
    indices: Sequence[int],
    *,
    spec: TrainingRunSpec,
    checkpoint: str,
) -> Sampled:
    """A group of ``spec.group_size`` rollouts for each task, each with its reward.

    Args:
        client: of the model.
        environment: where the indices point.
        indices: of the tasks, in the order of the result.
        spec: group size and sampling.
        checkpoint: name of the checkpoint to sample; empty for the base.

    Raises:
        UserError: ``ScorerFailed`` where ``taskset.onError`` says so.
    """
    sampling = Sampling(spec.sampling.max_tokens, decimal(spec.sampling.temperature))
    policy = Policy(RunSampler(client, spec.sampling), checkpoint or BASE, sampling)
    on_error = spec.taskset.on_error if spec.taskset else "DropGroup"
    slots = asyncio.Semaphore(CONCURRENT_ROLLOUTS)

    async def one(task: Task, group: str, number: int) -> tuple[Rollout, Score]:
        rollout = Rollout(task_id=task.id, rollout_idx=number, group_id=group)
        async with slots:
            try:
                reward = await play(environment, task, Session(policy, rollout))
            except RolloutFailedError as failed:
                return rollout, Score(None, Failure.of(failed.cause, failed.detail))
        return rollout, Score(reward)

    async def group(index: int) -> Group | Skipped:
        task = environment.task(index)
        name = uuid.uuid4().hex
        playing = [asyncio.ensure_future(one(task, name, i)) for i in range(spec.group_size)]
        try:
            played = await asyncio.gather(*playing)
        except InvalidRequestError as refused:
            if TOO_LONG not in refused.problem.detail:
                raise
            return Skipped(task, refused.problem.detail)
        finally:
            for other in playing:
                other.cancel()
        turns = tuple(tuple(rollout.turns) for rollout, _ in played)
        last = tuple(given[-1] if given else _NOTHING for given in turns)
        scores = settled(task, [score for _, score in played], on_error)
        return Group(task, last, tuple(map(_trainable, scores, turns)), turns)

    running = [asyncio.ensure_future(group(index)) for index in indices]
    try:
        done = await asyncio.gather(*running)
    finally:
        for other in running:
            other.cancel()
    return Sampled(
        [found for found in done if isinstance(found, Group)],
        [found for found in done if isinstance(found, Skipped)],
    )


def _trainable(score: Score, turns: Sequence[Completion]) -> Score:
    """Where nothing was sampled there is nothing to train, whatever it is worth."""
    return score if turns or score.failure is None else Score(None, score.failure)
