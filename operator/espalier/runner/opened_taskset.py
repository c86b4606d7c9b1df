"""A run's taskset while it is open: its tasks, what scores or plays them, and their digest."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from espalier.api.trainingrun import TrainingRunSpec
from espalier.api.wire.step import TasksetUsed
from espalier.loop.session import Sampler
from espalier.rewards import Rewards
from espalier.runner import prompt_limits
from espalier.runner.declared_taskset import declared_taskset
from espalier.runner.group_sampling import Outcome
from espalier.runner.task_source import OpenRewards, TaskSource


@dataclass(frozen=True)
class OpenedTaskset:
    """The tasks of a run, its rewards on them, and which tasks these are, for the record.

    ``facts`` are for the log: what confines the scorer, or what an environment says of itself.
    """

    tasks: TaskSource
    rewards: Rewards
    used: TasksetUsed
    facts: Mapping[str, object]

    @classmethod
    async def open(
        cls, spec: TrainingRunSpec, tasks: TaskSource, open_rewards: OpenRewards
    ) -> OpenedTaskset:
        """Starts what scores or plays the tasks.

        Raises:
            UserError, WaitError: it cannot be.
        """
        rewards: Rewards | None = None
        try:
            taskset = declared_taskset(spec)
            rewards = tasks.rewards(spec, open_rewards)
            facts = dict(await tasks.ready())
            # A million lines take seconds, in which SIGTERM must be heard.
            used = await asyncio.to_thread(tasks.used, taskset)
            facts |= await rewards.ready()
            return cls(tasks, rewards, used, facts)
        except BaseException:
            await _close(tasks, rewards)
            raise

    async def sample(
        self, client: Sampler, numbers: Sequence[int], spec: TrainingRunSpec, checkpoint: str
    ) -> list[Outcome]:
        """What comes of each task: a group of scored completions, or of played rollouts.

        ``numbers`` count tasks over the whole run; after the last task the first is next.

        Raises:
            UserError: ``ScorerFailed`` where onError says so, ``PromptTooLong`` where limits do.
        """
        outcomes = await self.tasks.groups(
            client, self.rewards, numbers, spec=spec, checkpoint=checkpoint
        )
        return prompt_limits.within(spec.limits, outcomes)

    async def close(self) -> None:
        """Ends what ``open`` started."""
        await _close(self.tasks, self.rewards)


async def _close(tasks: TaskSource, rewards: Rewards | None) -> None:
    if rewards is not None:
        await rewards.close()
    await tasks.close()
