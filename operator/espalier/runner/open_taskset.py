"""Opens the taskset that a run names."""

from __future__ import annotations

from pathlib import Path

from espalier.api.run.taskset import SOURCES, Taskset
from espalier.runner.jsonl import file_tasks
from espalier.runner.run_end import UserError
from espalier.runner.task_protocol import TASKS_DIRECTORY, Tasks


def open_tasks(spec: Taskset | None, directory: Path = TASKS_DIRECTORY) -> Tasks:
    """The tasks of a run.

    Args:
        spec: the run's taskset.
        directory: where its ConfigMap, claim or image is mounted.

    Raises:
        UserError: the taskset is missing or wrong; names the field.
    """
    if spec is not None and (file := spec.file) is not None:
        return file_tasks(spec, file, directory)
    if spec is not None and spec.reasoning_gym is not None:
        # Takes over a second to import, which a ConfigMap's tasks need not pay.
        from espalier.runner.gym_tasks import ReasoningGymTasks  # noqa: PLC0415

        return ReasoningGymTasks(spec, spec.reasoning_gym)
    sources = ", ".join(f"taskset.{source}" for source in SOURCES)
    raise UserError("TasksetInvalid", "taskset names no source", f"Set one of {sources}")
