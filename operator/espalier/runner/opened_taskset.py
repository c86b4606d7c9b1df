"""A run's taskset while it is open: its tasks, what scores or plays them, and their digest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from espalier.api.trainingrun import TrainingRunSpec
from espalier.api.wire import TasksetUsed
from espalier.environments.environment import Environment
from espalier.loop.session import Sampler
from espalier.rewards import Rewards
from espalier.runner.group_sampling import Outcome, sample_groups
from espalier.runner.open_taskset import declared_taskset
from espalier.runner.played_groups import Playing, play_groups
from espalier.runner.task_protocol import Tasks
from espalier.runner.taskset_digest import taskset_used

OpenRewards = Callable[[TrainingRunSpec, Tasks | Environment], Rewards]


@dataclass(frozen=True)
class OpenedTaskset:
    """The tasks of a run, its rewards on them, and which tasks these are, for the record.

    ``facts`` are for the log: what confines the scorer, or what an environment says of itself.
    """

    tasks: Tasks | Environment
    rewards: Rewards
    used: TasksetUsed
    facts: Mapping[str, object]

    @classmethod
    async def open(
        cls, spec: TrainingRunSpec, tasks: Tasks | Environment, open_rewards: OpenRewards
    ) -> OpenedTaskset:
        """Starts what scores or plays the tasks.

        Raises:
            UserError, WaitError: it cannot be.
        """
        rewards: Rewards | None = None
        try:
            taskset = declared_taskset(spec)
            rewards = open_rewards(spec, tasks)
            facts: dict[str, object] = {}
            if isinstance(tasks, Environment):
                facts |= await tasks.ready()
            # A million lines take seconds, in which SIGTERM must be heard.
            used = await asyncio.to_thread(taskset_used, taskset, tasks)
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
            UserError: ``ScorerFailed`` where onError says so.
        """
        if isinstance(self.tasks, Environment):
            how = Playing.of(spec)
            return await play_groups(
                client, self.tasks, self.rewards, numbers, how=how, checkpoint=checkpoint
            )
        return await sample_groups(
            client, self.tasks, self.rewards, numbers, spec=spec, checkpoint=checkpoint
        )

    async def close(self) -> None:
        """Ends what ``open`` started."""
        await _close(self.tasks, self.rewards)


async def _close(tasks: Tasks | Environment, rewards: Rewards | None) -> None:
    if rewards is not None:
        await rewards.close()
    if isinstance(tasks, Environment):
        await tasks.close()
