"""Runs rollouts in groups, each within its time."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Generic, TypeVar

from espalier.client.errors import ConfigurationError
from espalier.client.rollout import Rollout
from espalier.client.sampling import Sampling
from espalier.loop.batch import Batch
from espalier.loop.session import Policy, RolloutFunction, Sampler, Session, Task

T = TypeVar("T", bound=Task)


class Job(Generic[T]):
    """Rollouts that belong together: how they are sampled, and for how long they may take.

    Args:
        sampler: a TrainingClient.
        rollout: plays one task; its return value is the reward.
        group: rollouts of each task; their rewards are compared with each other.
        sampling: of every turn, unless the turn says otherwise.
        checkpoint: to sample; empty for what the head serves.
        max_concurrent: rollouts at a time.
        rollout_timeout: seconds for a rollout from start to grade; it ends as ``error`` with
            stop reason ``timeout`` and the phase named, and never holds up the others.
        max_model_length: tokens of prompt and completion together.
    """

    def __init__(
        self,
        sampler: Sampler,
        rollout: RolloutFunction[T],
        *,
        group: int = 1,
        sampling: Sampling | None = None,
        checkpoint: str = "",
        max_concurrent: int = 64,
        rollout_timeout: float | None = None,
        max_model_length: int | None = None,
    ) -> None:
        for name, value in (("group", group), ("max_concurrent", max_concurrent)):
            if value < 1:
                raise ConfigurationError(f"{name} is {value}: it must be at least 1")
        if rollout_timeout is not None and rollout_timeout <= 0:
            raise ConfigurationError(f"rollout_timeout is {rollout_timeout}: give seconds above 0")
        self._policy = Policy(sampler, checkpoint, sampling or Sampling(), max_model_length)
        self._play = rollout
        self._group = group
        self._slots = max_concurrent
        self._timeout = rollout_timeout
        self.batches: list[Batch] = []

    async def run(
        self, tasks: Sequence[T], *, group: int | None = None, checkpoint: str | None = None
    ) -> Batch:
        """A group of rollouts for each task. A failed rollout is returned, not raised.

        ``group`` and ``checkpoint`` are used instead of the job's own where they are given.
        """
        policy = self._policy
        if checkpoint is not None:
            policy = replace(policy, checkpoint=checkpoint)
        slots = asyncio.Semaphore(self._slots)

        async def one(task: T, group_id: str, index: int) -> Rollout:
            rollout = Rollout(task_id=task.id, rollout_idx=index, group_id=group_id)
            async with slots:
                await self._rollout(task, rollout, policy)
            return rollout

        async def all_of(task: T) -> list[Rollout]:
            group_id = uuid.uuid4().hex
            count = self._group if group is None else group
            return await asyncio.gather(*(one(task, group_id, i) for i in range(count)))

        batch = Batch(await asyncio.gather(*(all_of(task) for task in tasks)))
        self.batches.append(batch)
        return batch

    async def _rollout(self, task: T, rollout: Rollout, policy: Policy) -> None:
        session = Session(policy, rollout)
        try:
            async with _within(self._timeout):
                rollout.reward = await self._play(task, session)
        except _TooLongError:
            rollout.status, rollout.stop_reason = "error", "timeout"
            rollout.error = f"rollout timed out after {self._timeout:g} s during {session.doing}"
        except Exception as error:
            # One broken task must not take the batch with it; its group is left out and counted.
            rollout.status = "error"
            rollout.error = f"{type(error).__name__} during {session.doing}: {error}"
        else:
            rollout.stop_reason = rollout.stop_reason or "done"


class _TooLongError(Exception):
    """The rollout's own time is over, not one of its calls'."""


@asynccontextmanager
async def _within(seconds: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise _TooLongError from None
        raise
