"""The conditions of a head, in the manner of kstatus; docs/guides/head.md lists every reason."""

from __future__ import annotations

from itertools import islice

from espalier.api.checkpointhead import Agreed, CheckpointHeadStatus
from espalier.api.meta import Condition
from espalier.api.trainablemodel import TrainableModel
from espalier.core import conditions
from espalier.core.conditions import Finding
from espalier.core.head import full_weights
from espalier.core.head.head_request import PIN, TRACK, ref_name
from espalier.core.head.head_view import HeadView, damage_on_record, is_current, is_ready
from espalier.core.lineage import measurements
from espalier.core.lineage.lineage import Point
from espalier.core.names import adapter_name

PINNED = "Pinned"
# How far back a head looks for the metric of its gate.
RECENT = 20


def unfit(view: HeadView) -> list[Finding] | None:
    """Why the operator cannot follow the head until a person changes something."""
    name, model = view.head.metadata.name, view.head.spec.model_ref.name
    if view.namesake:
        message = (
            f"metadata.name: {name} is the name of another TrainableModel, whose slug it is; this "
            f"head is of {model}. Delete it and create it under another name"
        )
        return conditions.stalled("NameTaken", message)
    if view.model is None:
        # Not Stalled: the same apply may create it next, and Argo CD and Flux give up at Stalled.
        message = f"spec.modelRef: TrainableModel {model} does not exist: create it"
        return conditions.reconciling("ModelNotFound", message)
    return None


def refusal(view: HeadView, wanted: Agreed) -> list[Finding] | None:
    """Why a pin cannot be met."""
    if wanted.mode == TRACK or (view.lineage.root and view.lineage.root.name == wanted.name):
        return None
    model, keeps = view.head.spec.model_ref.name, "the head keeps serving what it serves"
    if view.named is None or view.named.metadata.deletion_timestamp is not None:
        reason, state = ("CheckpointNotFound", "does not exist")
        if view.named is not None:
            reason, state = ("CheckpointDeleted", "is being deleted")
        return conditions.stalled(
            reason,
            f"spec.checkpointRef: Checkpoint {wanted.name} {state}; {keeps}. Name one that "
            f"`kubectl get checkpoints -l espalier.dev/model={model}` lists",
        )
    owner = view.named.spec.model_ref.name
    if owner != model:
        return conditions.stalled(
            "WrongModel",
            f"spec.checkpointRef: {wanted.name} is a checkpoint of model {owner}, not of {model}; "
            f"{keeps}. Name one of {model}, or fork: a TrainableModel with source.checkpointRef",
        )
    if fault := view.lineage.faults.get(wanted.name):
        message = f"spec.checkpointRef: {wanted.name}: {fault.message}; {keeps}"
        return conditions.stalled(fault.reason, message)
    # Accept a pin to a damaged checkpoint: only retrying the load shows that it was repaired.
    if not is_ready(view.named) and damage_on_record(view.named) is None:
        return conditions.reconciling(
            "CheckpointNotReady", f"Checkpoint {wanted.name} is not Ready; {keeps}"
        )
    return None


def findings(
    view: HeadView,
    status: CheckpointHeadStatus,
    target: Point,
    *,
    served: bool,
    crowded_out: bool,
) -> list[Finding]:
    """Ready, Reconciling and Stalled of a head that has a target.

    ``crowded_out``: the heads before it take all the adapters that a rollout serves side by side.
    """
    shown = target.name or "the base"
    if view.lineage.place(target.name) is None:
        shown += ", whose Checkpoint was deleted"
    if crowded_out and view.model is not None:
        return _crowded_out(view.model)
    if blocked := _damaged(view, status, target):
        return blocked
    if not served:
        return _not_served(view, shown)
    if not is_current(status, target):
        return conditions.reconciling("Moving", f"rollouts serve {shown}, to be confirmed")
    pinned = _pinned(view, status, shown)
    return _idle(view, shown, pinned) or pinned or _tracking(view, status, target, shown)


def _pinned(view: HeadView, status: CheckpointHeadStatus, shown: str) -> list[Finding] | None:
    agreed = status.agreed
    if agreed is None or agreed.mode != PIN:
        return None
    return conditions.ready(PINNED, f"pinned to {shown}, onPin {view.head.spec.on_pin}")


def _tracking(
    view: HeadView, status: CheckpointHeadStatus, target: Point, shown: str
) -> list[Finding]:
    gate = _held_by_gate(view, status, target)
    return conditions.ready("Tracking", f"serves {shown}{gate and f'; {gate}'}")


def _held_by_gate(view: HeadView, status: CheckpointHeadStatus, target: Point) -> str:
    """Why the gate holds the newest checkpoint back, and what it waits for; empty if it passes."""
    gate, latest = view.head.spec.gate, status.latest
    if gate is None or latest is None or latest.name == target.name:
        return ""
    newest = view.lineage.by_name.get(latest.name)
    if newest is None or measurements.value(newest, gate.metric):
        return f"{latest.name} is below {gate.metric} {gate.min}"
    waits = f"{latest.name} {measurements.missing(newest, gate.metric)}"
    line = view.lineage.descending(status.branch, ref_name(status.branch_base))
    recent = [*islice(line, RECENT)]
    before = next((c for c in recent if measurements.value(c, gate.metric)), None)
    if before is not None:
        value = measurements.value(before, gate.metric)
        return f"{waits}. The newest that has it is {before.metadata.name} with {value}"
    known = ", ".join(measurements.known(recent)) or "no figure of their own"
    return f"{waits}. None of the newest {len(recent)} has it; they have {known}"


def _idle(view: HeadView, shown: str, pinned: list[Finding] | None) -> list[Finding] | None:
    """The findings of a model without rollouts, including why it could not serve with them."""
    model = view.model
    if model is None or model.spec.rollout.replicas:
        return None
    if model.status.resolved is None:
        resolved = conditions.find(model.status.conditions, conditions.SOURCE_RESOLVED)
        message = resolved.message if resolved is not None else "the model has not been looked at"
        return conditions.reconciling("SourceNotResolved", message)
    stands = pinned[0].message if pinned else f"stands at {shown}"
    name = model.metadata.name
    message = f"{stands}; no rollout serves it: spec.rollout.replicas of TrainableModel {name} is 0"
    return conditions.ready(PINNED if pinned else "Idle", message)


def _crowded_out(model: TrainableModel) -> list[Finding]:
    if model.spec.adapter.type == "Full":
        return full_weights.crowded_out(model)
    message = (
        f"a rollout serves {model.spec.rollout.max_adapters} adapters side by side, which "
        "heads before this one take: raise spec.rollout.maxAdapters of TrainableModel "
        f"{model.metadata.name}, or delete a head"
    )
    return conditions.stalled("TooManyHeads", message)


def _damaged(view: HeadView, status: CheckpointHeadStatus, target: Point) -> list[Finding] | None:
    """The findings of a target that a rollout refuses, or whose Checkpoint records damage."""
    adapter = adapter_name(view.head.spec.model_ref.name, target.digest)
    current = view.head.status.current
    keeps = f"; {current.name or 'the base'} stays served" if current is not None else ""
    for rollout in view.rollouts:
        if (problem := rollout.refused.get(adapter)) is not None:
            lost = current is not None and current.digest == target.digest
            keeps = _unserved(status, target) if lost else keeps
            message = f"{target.name}: {rollout.name}: {problem.text}{keeps}"
            return conditions.stalled(problem.reason, message)
    checkpoint = view.lineage.by_name.get(target.name)
    damage = damage_on_record(checkpoint) if checkpoint is not None else None
    if damage is None:
        return None
    return conditions.stalled(damage.reason, f"{target.name}: {damage.message}{keeps}")


def _unserved(status: CheckpointHeadStatus, target: Point) -> str:
    """That nothing takes the place of what was served, and what its owner may choose."""
    text = "; nothing is served in its place"
    if status.latest is None or status.latest.name == target.name:
        return text
    return f"{text}. The newest that is Ready is {status.latest.name}: the head may be pinned to it"


def _not_served(view: HeadView, shown: str) -> list[Finding]:
    problems = [
        f"{rollout.name}: {rollout.problem}" for rollout in view.rollouts if rollout.problem
    ]
    if problems:
        return conditions.reconciling("ServeFailed", f"loading {shown}: " + "; ".join(problems))
    if not view.rollouts:
        waiting = view.waiting or "no rollout pod is up yet"
        return conditions.reconciling("RolloutsNotReady", f"to serve {shown}: {waiting}")
    return conditions.reconciling("Moving", f"rollouts are loading {shown}")


def settle(
    view: HeadView, status: CheckpointHeadStatus, findings: list[Finding], now: str
) -> list[Condition]:
    """All conditions of a head, Pinned among them."""
    agreed = status.agreed
    pin = agreed if agreed is not None and agreed.mode == PIN else None
    pinned = Finding(
        PINNED,
        "True" if pin else "False",
        (pin.on_pin or "") if pin else "Tracking",
        f"held at {pin.name}" if pin else "",
    )
    old = view.head.status.conditions
    return conditions.settle(old, [*findings, pinned], view.head.metadata.generation, now)
