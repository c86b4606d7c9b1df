"""Which run trains a model now, and what its trainer is assigned.

One run trains a model at a time, the oldest of those that want to.
"""

from __future__ import annotations

from collections.abc import Sequence

from espalier.api.checkpointhead import CheckpointHead
from espalier.api.meta import Condition, OptimizerState
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.api.wire.trainer import Assignment
from espalier.core import conditions
from espalier.core.checkpoints.commits import run_identity
from espalier.core.head import head_request
from espalier.core.lineage.lineage import Lineage, Point
from espalier.core.run import bounds
from espalier.core.run.continued import counted_as

SUCCEEDED = "Succeeded"
TASKS_READY = "TasksReady"


def active(runs: Sequence[TrainingRun]) -> TrainingRun | None:
    """The run whose turn it is on a model: the oldest that wants to train."""
    wanting = [run for run in runs if _wants_to_train(run)]
    return min(
        wanting, key=lambda r: (r.metadata.creation_timestamp, r.metadata.name), default=None
    )


def waiting(runs: Sequence[TrainingRun]) -> list[TrainingRun]:
    """The runs that train or may yet do so, the one whose turn it is first."""
    first = active(runs)
    left = [run for run in runs if run.metadata.deletion_timestamp is None and not over(run)]
    return sorted(left, key=lambda run: run is not first)


def trainer_wanted(
    runs: Sequence[TrainingRun], head: CheckpointHead | None, lineage: Lineage
) -> bool:
    """Whether the model's trainer has anything to do."""
    if head is None or active(runs) is None:
        return False
    return head_request.training_point(head, lineage) is not None


def assignment(
    run: TrainingRun, model: TrainableModel, head: CheckpointHead | None, lineage: Lineage
) -> Assignment | None:
    """The assignment of the trainer; None while training is paused or its start is not known."""
    start = head_request.training_point(head, lineage) if head is not None else None
    if start is None:
        return None
    return Assignment(
        term=start.term,
        branch=start.branch,
        base=start.base.digest,
        base_name=start.base.name,
        base_step=start.base.step,
        optimizer_state=_optimizer_state(model, start.base),
        run=run_identity(run.metadata.name, counted_as(run)),
    )


def _optimizer_state(model: TrainableModel, start: Point) -> OptimizerState:
    """What the fork asks for counts at its origin; its own checkpoints always go on as they are."""
    origin = model.spec.source.checkpoint_ref
    return origin.optimizer_state if origin and origin.name == start.name else "Keep"


def _wants_to_train(run: TrainingRun) -> bool:
    return not (
        run.metadata.deletion_timestamp is not None
        or run.spec.suspend
        or over(run)
        or _lacks_tasks(run)
    )


def over(run: TrainingRun) -> bool:
    """Whether the run as it is specified now takes no further step: it succeeded or failed."""
    return run.status.step >= run.spec.steps or failure(run) is not None or bounds.over(run)


def failure(run: TrainingRun) -> Condition | None:
    """Why the run as it is specified now can never succeed, as its status says."""
    condition = conditions.find(run.status.conditions, SUCCEEDED)
    if condition is None or condition.status != "False":
        return None
    return condition if condition.observed_generation == run.metadata.generation else None


def _lacks_tasks(run: TrainingRun) -> bool:
    """Whether the tasks of the run as it is specified now were not there when last looked for."""
    condition = conditions.find(run.status.conditions, TASKS_READY)
    if condition is None or condition.status != "False":
        return False
    return condition.observed_generation == run.metadata.generation
