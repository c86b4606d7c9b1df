"""What a run's tasks come from: questions with answers, or an environment that is played."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import override

from espalier.api.run.taskset import Taskset
from espalier.api.trainingrun import TrainingRunSpec
from espalier.api.wire.step import TasksetUsed
from espalier.loop.session import Sampler
from espalier.rewards import Rewards
from espalier.rewards.lengths import LengthRules
from espalier.runner.declared_taskset import declared_taskset
from espalier.runner.group_sampling import Outcome, sample_groups
from espalier.runner.played_rewards import open_played_rewards
from espalier.runner.scorer_spec import Match
from espalier.runner.task_protocol import Task, Tasks
from espalier.runner.taskset_digest import taskset_used

if TYPE_CHECKING:
    from espalier.environments.environment import Environment

# The rewards of a run on tasks with answers; nothing is started yet.
OpenRewards = Callable[[TrainingRunSpec, Tasks], Rewards]


class TaskSource(Protocol):
    """Numbered tasks of a run. Before ``ready`` has returned nothing else is asked but rewards."""

    @property
    def size(self) -> int:
        """Number of tasks."""
        ...

    async def ready(self) -> Mapping[str, object]:
        """Opens the source; facts for the log. UserError names a field that is wrong."""
        ...

    async def close(self) -> None:
        """Lets go of what ``ready`` opened."""
        ...

    def task(self, index: int) -> Task:
        """A task as the model is asked it."""
        ...

    def used(self, spec: Taskset) -> TasksetUsed:
        """Which tasks these are, for the record: another digest, other tasks."""
        ...

    def told(self, index: int) -> dict[str, Any]:
        """A task as people read it: id, messages, answer, and what else is known of it."""
        ...

    def rewards(self, spec: TrainingRunSpec, open_rewards: OpenRewards) -> Rewards:
        """What pays for rollouts; UserError ``RewardInvalid`` for rewards that cannot."""
        ...

    async def groups(
        self,
        client: Sampler,
        rewards: Rewards,
        numbers: Sequence[int],
        *,
        spec: TrainingRunSpec,
        checkpoint: str,
    ) -> list[Outcome]:
        """What comes of each task: a group of scored completions or rollouts, or why there is none.

        Raises:
            UserError: ``ScorerFailed`` where onError says so.
        """
        ...


class AnsweredTasks(TaskSource):
    """Tasks that are one question each, whose answers are scored."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks

    @property
    @override
    def size(self) -> int:
        return self.tasks.size

    @override
    async def ready(self) -> Mapping[str, object]:
        return {}

    @override
    async def close(self) -> None:
        pass

    @override
    def task(self, index: int) -> Task:
        return self.tasks.task(index)

    @override
    def used(self, spec: Taskset) -> TasksetUsed:
        return taskset_used(spec, self.tasks)

    @override
    def told(self, index: int) -> dict[str, Any]:
        task, tasks = self.tasks.task(index), self.tasks
        # A generated task's reference is its number: the dataset itself scores the answer.
        answer = tasks.reference(index) if isinstance(tasks.scorer, Match) else None
        messages = [message.wire() for message in task.messages]
        return {"id": task.id, "messages": messages, "answer": answer}

    @override
    def rewards(self, spec: TrainingRunSpec, open_rewards: OpenRewards) -> Rewards:
        return open_rewards(spec, self.tasks)

    @override
    async def groups(
        self,
        client: Sampler,
        rewards: Rewards,
        numbers: Sequence[int],
        *,
        spec: TrainingRunSpec,
        checkpoint: str,
    ) -> list[Outcome]:
        return await sample_groups(
            client, self.tasks, rewards, numbers, spec=spec, checkpoint=checkpoint
        )


class PlayedTasks(TaskSource):
    """Tasks that are played over turns with an environment, which pays for rollouts itself."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    @property
    @override
    def size(self) -> int:
        return self.environment.size

    @override
    async def ready(self) -> Mapping[str, object]:
        return await self.environment.ready()

    @override
    async def close(self) -> None:
        await self.environment.close()

    @override
    def task(self, index: int) -> Task:
        return self.environment.task(index)

    @override
    def used(self, spec: Taskset) -> TasksetUsed:
        return TasksetUsed(digest=self.environment.digest, size=self.size, seed=spec.seed)

    @override
    def told(self, index: int) -> dict[str, Any]:
        task = self.environment.task(index)
        messages = [message.wire() for message in task.messages]
        return {"id": task.id, "messages": messages, "answer": None, "data": task.data}

    @override
    def rewards(self, spec: TrainingRunSpec, open_rewards: OpenRewards) -> Rewards:
        lengths = LengthRules(spec.sampling.max_tokens, spec.overlong, spec.length_penalty)
        return open_played_rewards(spec, declared_taskset(spec), lengths)

    @override
    async def groups(
        self,
        client: Sampler,
        rewards: Rewards,
        numbers: Sequence[int],
        *,
        spec: TrainingRunSpec,
        checkpoint: str,
    ) -> list[Outcome]:
        # Loads what a conversation needs, which tasks with answers need not pay.
        from espalier.runner.played_groups import Playing, play_groups  # noqa: PLC0415

        how = Playing.of(spec)
        return await play_groups(
            client, self.environment, rewards, numbers, how=how, checkpoint=checkpoint
        )
