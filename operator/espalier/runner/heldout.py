"""Tasks that a run has never asked: for an honest comparison of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from espalier.api.trainingrun import Taskset
from espalier.runner.jsonl import JsonlTasks
from espalier.runner.problem import UserError
from espalier.runner.tasks import Message, Tasks
from espalier.runner.tasksets import open_tasks

# Candidates looked at for every task that is wanted; small datasets repeat themselves.
CANDIDATES = 100


@dataclass(frozen=True)
class HeldOut:
    """Distinct tasks outside of the training taskset. ``indices`` point into ``tasks``."""

    tasks: Tasks
    indices: tuple[int, ...]


def held_out(training: Taskset | None, seed: int, size: int) -> HeldOut:
    """Tasks of the same generator with another seed, without those that the run trains on.

    Another seed alone would not do: generators draw from a small range, and reasoning-gym's seeds
    overlap (the task at ``index`` of a seed is the first task of ``seed + index``).

    Raises:
        UserError: the taskset is not generated, the seed is the run's, or too few tasks are left.
    """
    if training is None or training.reasoning_gym is None:
        raise _invalid(
            "the run's taskset is not generated, so that there are no others like it",
            "Give held-out tasks as a file of JSON lines (--tasks)",
        )
    if seed == training.seed:
        raise _invalid(f"seed {seed} is the seed that the run trains on", "Choose another seed")
    trained = open_tasks(training)
    asked = {trained.task(index).messages for index in range(trained.size)}
    tasks = open_tasks(training.model_copy(update={"seed": seed, "size": size * CANDIDATES}))
    found: dict[tuple[Message, ...], int] = {}
    for index in range(tasks.size):
        messages = tasks.task(index).messages
        if messages not in asked:
            found.setdefault(messages, index)
        if len(found) == size:
            return HeldOut(tasks, tuple(found.values()))
    raise _invalid(
        f"only {len(found)} of {size} tasks differ from those that the run trains on",
        "Ask for fewer (--size)",
    )


def from_file(training: Taskset, path: Path, seed: int, size: int) -> HeldOut:
    """Tasks of a file, asked and scored as the run does."""
    tasks = JsonlTasks(training.model_copy(update={"seed": seed, "size": size}), str(path), path)
    return HeldOut(tasks, tuple(range(tasks.size)))


def _invalid(detail: str, remedy: str) -> UserError:
    return UserError("TasksetInvalid", detail, remedy)
