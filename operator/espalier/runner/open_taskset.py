"""Opens the taskset that a run names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from espalier.api.run.taskset import SOURCES, Taskset
from espalier.environments.errors import UserError
from espalier.runner.jsonl import InlineTasks, file_tasks
from espalier.runner.task_protocol import TASKS_DIRECTORY, Tasks

if TYPE_CHECKING:
    from espalier.runner.task_source import TaskSource


def open_taskset(spec: Taskset | None, directory: Path = TASKS_DIRECTORY) -> TaskSource:
    """What a run asks or plays; an environment is opened by its ``ready``.

    Args:
        spec: the run's taskset.
        directory: where its ConfigMap, claim or image is mounted.

    Raises:
        UserError: the taskset is missing or wrong; names the field.
    """
    # Loads the client, which those that only read tasks need not pay.
    from espalier.runner.task_source import AnsweredTasks, PlayedTasks  # noqa: PLC0415

    if spec is not None and spec.played is not None:
        # Loads aiohttp, which tasks with answers need not pay.
        from espalier.environments.open_environment import open_environment  # noqa: PLC0415

        return PlayedTasks(open_environment(spec))
    return AnsweredTasks(open_tasks(spec, directory))


def open_tasks(spec: Taskset | None, directory: Path = TASKS_DIRECTORY) -> Tasks:
    """The tasks of a run, each of which is one question with an answer.

    Raises:
        UserError: the taskset is missing, wrong, or played over turns; names the field.
    """
    if spec is not None and (file := spec.file) is not None:
        return file_tasks(spec, file, directory)
    if spec is not None and spec.inline is not None:
        return InlineTasks(spec, spec.inline)
    if spec is not None and spec.reasoning_gym is not None:
        # Take over a second to import, which a ConfigMap's tasks need not pay.
        from espalier.runner.gym_tasks import ReasoningGymTasks  # noqa: PLC0415
        from espalier.runner.mixed_tasks import MixedTasks  # noqa: PLC0415

        source = spec.reasoning_gym
        if source.dataset is not None:
            return ReasoningGymTasks(spec, source.dataset, source.config or {})
        return MixedTasks(spec, source.datasets or ())
    if spec is not None and spec.played is not None:
        raise UserError(
            "TasksetInvalid",
            "taskset is played over several turns: no answer of one turn can be scored",
            "Name a run whose tasks have answers",
        )
    sources = ", ".join(f"taskset.{source}" for source in SOURCES)
    raise UserError("TasksetInvalid", "taskset names no source", f"Set one of {sources}")
