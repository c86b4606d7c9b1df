"""Where `espalier evaluate` takes its held-out tasks from."""

from __future__ import annotations

from pathlib import Path

from espalier.api.run.taskset import Taskset
from espalier.cli.kubectl import Kubectl
from espalier.cli.run_tasks import as_file, of_config_map
from espalier.runner.heldout import HeldOut, beyond_size, from_file, generated


def choose(
    taskset: Taskset, kubectl: Kubectl, *, seed: int, size: int, file: Path | None
) -> HeldOut:
    """A given file; else lines of the run's ConfigMap beyond its size; else generated tasks."""
    if file is not None:
        return from_file(taskset, file, seed, size)
    if taskset.file is None:
        return generated(taskset, seed, size)
    remedy = "Give --tasks FILE with lines that the run does not train on"
    source = of_config_map(taskset, remedy)
    with as_file(kubectl.config_map(source.name, source.key), source.key) as path:
        return beyond_size(taskset, path, seed, size)
