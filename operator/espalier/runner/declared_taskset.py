"""The taskset that a run declares."""

from __future__ import annotations

from espalier.api.run.taskset import Taskset
from espalier.api.trainingrun import TrainingRunSpec
from espalier.runner.run_end import UserError


def declared_taskset(spec: TrainingRunSpec) -> Taskset:
    """The taskset of a run; UserError where it has none."""
    if spec.taskset is None:
        raise UserError("TasksetInvalid", "the run has no taskset", "Set spec.taskset")
    return spec.taskset
