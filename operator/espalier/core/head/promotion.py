"""Which checkpoint may be promoted in Git: one of the head's model, Ready, that passed the gate."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHeadSpec, Gate
from espalier.api.metric_names import MEASURED_MESSAGE, is_measured
from espalier.core import conditions
from espalier.core.head.head_request import passes
from espalier.core.lineage import measurements


class PromotionRefusedError(Exception):
    """Why a checkpoint is not promoted, and what to do."""


def newest(spec: CheckpointHeadSpec, checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """The newest checkpoint that may be promoted and that training has not left behind.

    Raises:
        RefusedError: when there is none.
    """
    gate = _gate(spec)
    live = [
        checkpoint
        for checkpoint in checkpoints
        if checkpoint.spec.model_ref == spec.model_ref
        and conditions.is_true(checkpoint.status.conditions, conditions.READY)
        and not conditions.is_true(checkpoint.status.conditions, conditions.SUPERSEDED)
    ]
    passed = [checkpoint for checkpoint in live if passes(spec, checkpoint)]
    if live and not any(measurements.value(checkpoint, gate.metric) for checkpoint in live):
        others = ", ".join(measurements.known(live)) or "no figure of their own yet"
        raise PromotionRefusedError(
            f"none of the {len(live)} Ready checkpoints of model {spec.model_ref.name} has "
            f"{gate.metric}; they have {others}: train on, or name one of these in spec.gate.metric"
        )
    if not passed:
        raise PromotionRefusedError(
            f"none of the {len(live)} Ready checkpoints of model {spec.model_ref.name} reaches "
            f"{gate.metric} {gate.min}: train on, or lower spec.gate.min"
        )
    return max(passed, key=lambda checkpoint: (checkpoint.spec.term, checkpoint.spec.step))


def check(spec: CheckpointHeadSpec, checkpoint: Checkpoint) -> None:
    """Raises RefusedError unless the head may be pinned to the checkpoint."""
    gate, name = _gate(spec), checkpoint.metadata.name
    owner, model = checkpoint.spec.model_ref.name, spec.model_ref.name
    if owner != model:
        raise PromotionRefusedError(
            f"{name} is a checkpoint of model {owner}, the head serves {model}"
        )
    if not conditions.is_true(checkpoint.status.conditions, conditions.READY):
        raise PromotionRefusedError(
            f"{name} is not Ready: kubectl describe checkpoint {name} says why"
        )
    if not passes(spec, checkpoint):
        value = measurements.value(checkpoint, gate.metric)
        has = (
            f"has {gate.metric} {value}" if value else measurements.missing(checkpoint, gate.metric)
        )
        raise PromotionRefusedError(
            f"{name} {has}; the gate asks for {gate.min}: promote another one"
        )


def _gate(spec: CheckpointHeadSpec) -> Gate:
    if spec.gate is None:
        raise PromotionRefusedError(
            "the head has no gate to pass: add spec.gate with metric and min"
        )
    if not is_measured(spec.gate.metric):
        raise PromotionRefusedError(f"spec.gate.metric: {spec.gate.metric} {MEASURED_MESSAGE}")
    return spec.gate
