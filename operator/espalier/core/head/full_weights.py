"""Limits of full weights (adapter.type Full): a rollout serves one checkpoint at a time."""

from __future__ import annotations

from espalier.api.checkpointhead import CheckpointHead
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.core import conditions
from espalier.core.conditions import Finding
from espalier.core.head.head_request import PIN


def crowded_out(model: TrainableModel) -> list[Finding]:
    """The findings of a head whose checkpoint cannot be loaded beside another head's."""
    message = (
        f"rollouts of {model.metadata.name} (adapter.type Full) hold the weights of one checkpoint,"
        " which a head before this one chooses: pin both to the same Checkpoint, or delete this "
        "head and serve its checkpoint by a TrainableModel with source.checkpointRef"
    )
    return conditions.stalled("TooManyHeads", message)


def unsampled(
    run: TrainingRun, model: TrainableModel | None, head: CheckpointHead
) -> list[Finding] | None:
    """Why a runner could not sample what it trains: rollouts hold another set of weights."""
    if run.spec.driver != "Runner" or model is None or model.spec.adapter.type != "Full":
        return None
    agreed = head.status.agreed
    pinned = agreed is not None and agreed.mode == PIN
    if model.spec.rollout.replicas == 0 or not (pinned or head.spec.gate):
        return None
    field, remedy = ("onPin", "set onPin: Pause or mode: Track")
    if not pinned:
        field, remedy = ("gate", "remove the gate")
    message = (
        f"CheckpointHead {head.metadata.name}: spec.{field} lets training go on from another "
        f"checkpoint than is served, and rollouts of {model.metadata.name} (adapter.type Full) "
        f"hold one, so the runner could not sample what it trains: {remedy}, or set driver: Client"
    )
    return conditions.stalled("CheckpointNotLoaded", message)
