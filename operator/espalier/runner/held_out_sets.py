"""The held-out tasks of a run's evaluations: drawn once, and what images play stays open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from espalier.api.run.evaluation import Evaluation
from espalier.api.run.taskset import Taskset
from espalier.environments.kept import Kept
from espalier.runner.heldout import HeldOut
from espalier.runner.task_source import PlayedTasks

# The held-out tasks, given the run's taskset and the evaluation.
OpenHeldOut = Callable[[Taskset, Evaluation], HeldOut]


class HeldOutSets:
    """The held-out tasks by evaluation."""

    def __init__(self, open_held_out: OpenHeldOut) -> None:
        self._open = open_held_out
        self._known: dict[str, tuple[tuple[Taskset, Taskset], HeldOut]] = {}

    async def of(self, training: Taskset, evaluation: Evaluation) -> HeldOut:
        """The tasks, which are drawn once: telling them from the run's reads both.

        An environment of ours is opened for each evaluation, and so is a new one.
        """
        wanted, image = (training, evaluation.taskset), evaluation.taskset.user_image
        known = self._known.get(evaluation.name)
        if known is not None and known[0] == wanted:
            return known[1]
        if known is not None:
            del self._known[evaluation.name]
            await _ended(known[1])
        if image is not None:
            # At once: two that open it would take each other's socket.
            held_out = self._open(training, evaluation)
        else:
            held_out = await asyncio.to_thread(self._open, training, evaluation)
        if image is not None or not isinstance(held_out.tasks, PlayedTasks):
            self._known[evaluation.name] = (wanted, held_out)
        return held_out

    async def close(self) -> None:
        """Lets go of what stayed open."""
        for _, held_out in self._known.values():
            await _ended(held_out)


async def _ended(held_out: HeldOut) -> None:
    tasks = held_out.tasks
    if isinstance(tasks, PlayedTasks) and isinstance(tasks.environment, Kept):
        await tasks.environment.end()
