"""Tasks with answers as an environment: a rollout is one turn, whose text the scorer pays."""

from __future__ import annotations

from typing import Any

from espalier.api.run.taskset import Taskset
from espalier.environments.errors import RolloutFailedError
from espalier.environments.tasks import Task
from espalier.loop.session import Session
from espalier.runner.scoring.scorer import Scorer
from espalier.runner.task_protocol import Tasks
from espalier.runner.taskset_digest import taskset_used


class AnsweredEnvironment:
    """One question each.

    Args:
        spec: the taskset.
        tasks: of that taskset.
        scorer: of these tasks; ``close`` ends it.
    """

    def __init__(self, spec: Taskset, tasks: Tasks, scorer: Scorer) -> None:
        self._spec = spec
        self._tasks = tasks
        self._scorer = scorer
        # Of the tasks that were asked for; to name all of them would generate them.
        self._indices: dict[str, int] = {}

    @property
    def size(self) -> int:
        """Number of tasks."""
        return self._tasks.size

    @property
    def digest(self) -> str:
        """Of the tasks and their answers."""
        return taskset_used(self._spec, self._tasks).digest

    @property
    def timeout_seconds(self) -> None:
        """None: the scorer bounds itself, and the gateway's client its patience."""
        return None

    async def ready(self) -> dict[str, Any]:
        """Starts the scorer; what confines it.

        Raises:
            UserError, WaitError: it cannot be started.
        """
        return (await self._scorer.ready()).model_dump()

    async def close(self) -> None:
        """Ends the scorer."""
        await self._scorer.close()

    def task(self, index: int) -> Task:
        """The task at that index."""
        task = self._tasks.task(index)
        self._indices[task.id] = index
        return task

    async def rollout(self, task: Task, session: Session) -> float:
        """The reward of the one answer.

        Raises:
            RolloutFailedError: it could not be scored.
        """
        turn = await session.sample([message.wire() for message in task.messages])
        with session.phase("scoring"):
            score = await self._scorer.score(self._indices[task.id], turn.text)
        if score.failure is not None or score.reward is None:
            why = score.failure
            cause, detail = (why.cause, why.detail) if why else ("Malformed", "no score")
            raise RolloutFailedError(cause, detail)
        return score.reward
