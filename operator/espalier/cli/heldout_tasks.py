"""Where `espalier evaluate` takes its held-out tasks from."""

from __future__ import annotations

from pathlib import Path

from espalier.api.run.taskset import Taskset
from espalier.cli.kubectl import Kubectl
from espalier.cli.run_tasks import as_file, of_config_map
from espalier.runner.heldout import HeldOut, beyond_size, from_file, generated, reseeded
from espalier.runner.task_source import PlayedTasks


def choose(
    taskset: Taskset, kubectl: Kubectl, *, seed: int, size: int, file: Path | None
) -> HeldOut:
    """A given file; else lines of the run's ConfigMap beyond its size; else generated tasks."""
    if file is not None:
        return from_file(taskset, file, seed, size)
    if taskset.user_image is not None:
        return of_image(taskset, seed, size)
    if taskset.file is None:
        return generated(taskset, seed, size)
    remedy = "Give --tasks FILE with lines that the run does not train on"
    source = of_config_map(taskset, remedy)
    with as_file(kubectl.config_map(source.name, source.key), source.key) as path:
        return beyond_size(taskset, path, seed, size)


def of_image(taskset: Taskset, seed: int, size: int) -> HeldOut:
    """What the functions of the run's image give for another seed.

    The image is not here: its modules are, in the working directory.
    """
    from espalier.environments.python_source import here  # noqa: PLC0415

    return HeldOut(PlayedTasks(here(reseeded(taskset, seed, size))), None)
