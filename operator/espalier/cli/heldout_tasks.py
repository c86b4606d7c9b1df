"""Where `espalier evaluate` takes its held-out tasks from."""

from __future__ import annotations

import tempfile
from pathlib import Path

from espalier.api.taskset import Taskset
from espalier.cli.failure import CommandError
from espalier.cli.kubectl import Kubectl
from espalier.runner.heldout import HeldOut, beyond_size, from_file, generated


def choose(
    taskset: Taskset, kubectl: Kubectl, *, seed: int, size: int, file: Path | None
) -> HeldOut:
    """A given file; else lines of the run's ConfigMap beyond its size; else generated tasks."""
    if file is not None:
        return from_file(taskset, file, seed, size)
    if taskset.file is None:
        return generated(taskset, seed, size)
    source = taskset.config_map
    if source is None:
        raise CommandError(
            f"the run's tasks are in {taskset.file.name}, which this command does not read",
            "usage",
            "Give --tasks FILE with lines that the run does not train on",
        )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / source.key
        path.write_text(kubectl.config_map(source.name, source.key))
        return beyond_size(taskset, path, seed, size)
