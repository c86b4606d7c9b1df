"""A run's taskset while it is open: what samples its tasks, and the mark that names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from espalier.api.run.taskset import Taskset
from espalier.api.trainingrun import TrainingRunSpec
from espalier.client import GatewayClient
from espalier.environments.environment import Environment
from espalier.runner.group_sampling import Sampled, sample_groups
from espalier.runner.played_groups import play_groups
from espalier.runner.scoring.scorer import Scorer
from espalier.runner.task_protocol import Tasks


@dataclass(frozen=True)
class OpenedTaskset:
    """Tasks of one taskset; ``scorer`` is None where an environment pays its rollouts itself.

    ``digest`` is that of the tasks when they were opened.
    """

    spec: Taskset
    tasks: Tasks | Environment
    scorer: Scorer | None
    digest: str
    facts: dict[str, Any]

    @classmethod
    async def open(
        cls,
        spec: Taskset,
        tasks: Tasks | Environment,
        open_scorer: Callable[[Taskset, Tasks], Scorer],
    ) -> OpenedTaskset:
        """Starts what scores or plays the tasks; ``facts`` are for the log.

        Raises:
            UserError, WaitError: it cannot be.
        """
        if isinstance(tasks, Environment):
            try:
                facts = await tasks.ready()
                return cls(spec, tasks, None, tasks.digest, facts)
            except BaseException:
                await tasks.close()
                raise
        scorer = open_scorer(spec, tasks)
        try:
            confined = await scorer.ready()
        except BaseException:
            await scorer.close()
            raise
        return cls(spec, tasks, scorer, tasks.digest, confined.model_dump())

    async def sample(
        self, client: GatewayClient, indices: Sequence[int], spec: TrainingRunSpec, checkpoint: str
    ) -> Sampled:
        """A group for each task, of completions that are scored or of rollouts that are played."""
        if isinstance(self.tasks, Environment):
            return await play_groups(client, self.tasks, indices, spec=spec, checkpoint=checkpoint)
        if self.scorer is None:
            raise RuntimeError("tasks with answers have a scorer")
        return await sample_groups(
            client, self.tasks, self.scorer, indices, spec=spec, checkpoint=checkpoint
        )

    async def close(self) -> None:
        """Ends what ``open`` started."""
        if isinstance(self.tasks, Environment):
            await self.tasks.close()
        elif self.scorer is not None:
            await self.scorer.close()
