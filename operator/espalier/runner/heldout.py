"""Tasks that a run has never asked: for an honest comparison of checkpoints."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from espalier.api.run.evaluation import Evaluation
from espalier.api.run.taskset import Taskset
from espalier.runner.jsonl import JsonlTasks
from espalier.runner.open_taskset import open_taskset
from espalier.runner.run_end import UserError
from espalier.runner.task_protocol import TASKS_DIRECTORY, Message, Task
from espalier.runner.task_source import AnsweredTasks, PlayedTasks, TaskSource

# Candidates looked at for every task that is wanted; small datasets repeat themselves.
CANDIDATES = 100
# The bound of taskset.size.
MAX_LINES = 1_000_000


@dataclass(frozen=True)
class HeldOut:
    """Distinct tasks outside of the training taskset. ``indices`` point into ``tasks``.

    An environment is not open yet: whoever asks its tasks opens and closes it. Where ``indices``
    are None they are all of its tasks, which a user's image tells once it is open.
    """

    tasks: TaskSource
    indices: tuple[int, ...] | None


def generated(training: Taskset, seed: int, size: int) -> HeldOut:
    """Tasks of the run's generator with another seed, without those that the run trains on.

    Another seed alone would not do: generators draw from a small range, and reasoning-gym's seeds
    overlap (the task at ``index`` of a seed is the first task of ``seed + index``).

    Raises:
        UserError: the seed is the run's, or too few tasks are left.
    """
    return declared(training, reseeded(training, seed, size))


def reseeded(training: Taskset, seed: int, size: int) -> Taskset:
    """The run's taskset with another seed; UserError where it is the run's own."""
    if seed == training.seed:
        raise _invalid(f"seed {seed} is the seed that the run trains on", "Choose another seed")
    return training.model_copy(update={"seed": seed, "size": size})


def beyond_size(training: Taskset, path: Path, seed: int, size: int) -> HeldOut:
    """Lines of the run's own file that its ``taskset.size`` leaves out.

    Args:
        training: the run's taskset, of a ConfigMap.
        path: a copy of its file.
        seed: draws from the lines that are left.
        size: number of tasks.

    Raises:
        UserError: too few lines are left.
    """
    whole = JsonlTasks(training.model_copy(update={"size": MAX_LINES}), str(path.name), path)
    trained = JsonlTasks(training, str(path.name), path)
    left = list(range(trained.size, whole.size))
    random.Random(seed).shuffle(left)
    return _distinct(AnsweredTasks(trained), AnsweredTasks(whole), left, size)


def of_evaluation(
    training: Taskset, evaluation: Evaluation, directory: Path = TASKS_DIRECTORY
) -> HeldOut:
    """The tasks of a run's evaluation; those of a user's image are what it gives for its seed."""
    if evaluation.taskset.user_image is None:
        return declared(training, evaluation.taskset, directory)
    # Loads aiohttp, which tasks with answers need not pay.
    from espalier.environments.kept import Kept  # noqa: PLC0415
    from espalier.environments.python_source import open_python  # noqa: PLC0415

    environment = open_python(evaluation.taskset, evaluation.name)
    return HeldOut(PlayedTasks(Kept(environment)), None)


def declared(training: Taskset, wanted: Taskset, directory: Path = TASKS_DIRECTORY) -> HeldOut:
    """The wanted tasks, without those that the run trains on.

    Raises:
        UserError: fewer tasks are left than ``wanted.size``.
    """
    if wanted.file is None:
        wide = wanted.model_copy(update={"size": wanted.size * CANDIDATES})
    else:
        wide = wanted.model_copy(update={"size": MAX_LINES})
    tasks = open_taskset(wide, directory)
    # What a user's image plays is known where it is open; seeds and sources tell it apart.
    trained = None if training.user_image is not None else open_taskset(training, directory)
    return _distinct(trained, tasks, range(tasks.size), wanted.size)


def from_file(training: Taskset, path: Path, seed: int, size: int) -> HeldOut:
    """Tasks of another file, asked and scored as the run does."""
    spec = training.model_copy(update={"seed": seed, "size": size})
    tasks = JsonlTasks(spec, str(path), path)
    return HeldOut(AnsweredTasks(tasks), tuple(range(tasks.size)))


def _distinct(
    trained: TaskSource | None,
    tasks: TaskSource,
    candidates: Iterable[int],
    size: int,
) -> HeldOut:
    known = {_asked(trained.task(index)) for index in range(trained.size)} if trained else set()
    found: dict[tuple[tuple[Message, ...], str], int] = {}
    for index in candidates:
        asked = _asked(tasks.task(index))
        if asked not in known:
            found.setdefault(asked, index)
        if len(found) == size:
            return HeldOut(tasks, tuple(found.values()))
    raise _invalid(
        f"only {len(found)} of {size} tasks differ from those that the run trains on",
        "Ask for fewer (--size, or size of evaluation[].taskset), or give a file of others "
        "(--tasks, or another file in evaluation[].taskset)",
    )


def _asked(task: Task) -> tuple[tuple[Message, ...], str]:
    """What tells a task from others: its messages, and what an environment begins with."""
    return task.messages, json.dumps(task.data, sort_keys=True)


def _invalid(detail: str, remedy: str) -> UserError:
    return UserError("TasksetInvalid", detail, remedy)
