"""The head of a model: what the slug serves and what training continues from.

Every pass derives the state from spec and status; no phase is stored. Order of effects: acknowledge
in ``status.target``, have the rollouts load it, read back, then write ``status.current``; a crash
between any two is harmless. What the operator last agreed to is ``status.epochCause``: the epoch
rises once when that request changes, and a request that cannot be met leaves everything as it is.

The leading head has its model's name and decides where training goes on; other heads only serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import (
    CheckpointHead,
    CheckpointHeadStatus,
    CurrentCheckpoint,
    HeadMove,
    NameOnly,
    PodDigest,
)
from espalier.api.meta import Condition
from espalier.api.trainablemodel import TrainableModel
from espalier.core import conditions
from espalier.core.conditions import Finding
from espalier.core.lineage import Lineage, Point, point
from espalier.core.names import adapter_name, branch_name
from espalier.core.request import (
    BRANCH,
    CONTINUE,
    PAUSE,
    PIN,
    TRACK,
    Request,
    leads,
    passes,
    ref_name,
)

HISTORY = 20
PINNED = "Pinned"


@dataclass(frozen=True)
class Rollout:
    """A live rollout pod; ``loaded`` are the adapters it confirmed, None before it answered."""

    name: str
    ready: bool
    loaded: frozenset[str] | None = None
    problem: str = ""


@dataclass(frozen=True)
class HeadView:
    """All that a head's decision depends on.

    ``named`` is the Checkpoint that spec.checkpointRef names, of whatever model; ``leader`` the
    head of the model's name when that is another one; ``trainer_epoch`` the epoch that the trainer
    was found at, 0 if unknown; ``waiting`` why there is no rollout, from Kubernetes.
    """

    head: CheckpointHead
    model: TrainableModel | None
    lineage: Lineage
    named: Checkpoint | None = None
    leader: CheckpointHead | None = None
    rollouts: Sequence[Rollout] = ()
    trainer_epoch: int = 0
    waiting: str = ""


@dataclass(frozen=True)
class HeadDecision:
    """The status to write, and the adapter that rollouts must load; None: nothing to load yet."""

    status: CheckpointHeadStatus
    adapter: str | None
    moved: HeadMove | None = None


def decide(view: HeadView, now: str) -> HeadDecision:
    """The next status of a head and what the rollouts must load; ``now`` is RFC 3339."""
    old = view.head.status
    if view.model is None:
        message = f"TrainableModel {view.head.spec.model_ref.name} does not exist: create it"
        return _held(view, conditions.stalled("ModelNotFound", message), now)
    wanted = Request.of(view.head.spec, view.head.metadata.generation)
    refusal = _refusal(view, wanted)
    status = _agree(view, None if refusal else wanted)
    target = _target(view, status, refused=refusal is not None)
    if target is None:
        findings = refusal or conditions.reconciling(
            "SourceNotResolved", "the checkpoint that the model forks from is not known yet"
        )
        return _held(view, findings, now)
    adapter = adapter_name(view.model.metadata.name, target.digest)
    acknowledged = old.target == NameOnly(name=target.name) and old.epoch == status.epoch
    served = _served(view, adapter)
    status = status.model_copy(
        update={
            "target": NameOnly(name=target.name),
            "latest": _latest(view, status),
            "pods": _pods(view, adapter, target.digest),
            "observed_generation": view.head.metadata.generation,
        }
    )
    moved = None
    if acknowledged and served and not _is_current(status, target):
        status, moved = _move(status, target, now)
    findings = refusal or _findings(view, status, target, served)
    status = status.model_copy(update={"conditions": _settle(view, status, findings, now)})
    return HeadDecision(status, adapter, moved)


def _held(view: HeadView, findings: list[Finding], now: str) -> HeadDecision:
    """Nothing moves: what is served stays served."""
    old = view.head.status
    status = old.model_copy(
        update={
            "observed_generation": view.head.metadata.generation,
            "conditions": _settle(view, old, findings, now),
        }
    )
    adapter = None
    if view.model is not None and old.current is not None:
        adapter = adapter_name(view.model.metadata.name, old.current.digest)
    return HeadDecision(status, adapter)


def _refusal(view: HeadView, wanted: Request) -> list[Finding] | None:
    """Why a pin cannot be met."""
    if wanted.mode == TRACK or (view.lineage.root and view.lineage.root.name == wanted.name):
        return None
    model, keeps = view.head.spec.model_ref.name, "the head keeps serving what it serves"
    if view.named is None:
        return conditions.stalled(
            "CheckpointNotFound",
            f"spec.checkpointRef: Checkpoint {wanted.name} does not exist; {keeps}. Name one that "
            f"`kubectl get checkpoints -l espalier.dev/model={model}` lists",
        )
    owner = view.named.spec.model_ref.name
    if owner != model:
        return conditions.stalled(
            "WrongModel",
            f"spec.checkpointRef: {wanted.name} is a checkpoint of model {owner}, not of {model}; "
            f"{keeps}. Name one of {model}, or fork: a TrainableModel with source.checkpointRef",
        )
    if not conditions.is_true(view.named.status.conditions, conditions.READY):
        return conditions.reconciling(
            "CheckpointNotReady", f"Checkpoint {wanted.name} is not Ready; {keeps}"
        )
    return None


def _agree(view: HeadView, wanted: Request | None) -> CheckpointHeadStatus:
    """The status after the request, if any, is agreed to: epoch, branch, branchBase, epochCause."""
    old = view.head.status
    if not leads(view.head):
        return _follow(view, wanted)
    status = old
    if old.epoch == 0:
        epoch = max(1, view.lineage.last_epoch())
        status = old.model_copy(update={"epoch": epoch, "branch": view.lineage.live_branch()})
    agreed = Request.parse(status.epoch_cause) or Request(TRACK)
    if wanted is not None and not (status.epoch_cause and wanted.asks_same(agreed)):
        status = _transition(status, agreed, wanted)
    if view.trainer_epoch > status.epoch:
        # The head was deleted and made again while a trainer went on: overtake it.
        status = status.model_copy(update={"epoch": view.trainer_epoch + 1})
    return status


def _transition(
    status: CheckpointHeadStatus, agreed: Request, wanted: Request
) -> CheckpointHeadStatus:
    """The one place where an edit raises the epoch."""
    changes: dict[str, object] = {"epoch_cause": wanted.text()}
    resumes = agreed.on_pin == PAUSE and wanted.on_pin != PAUSE
    # Continue leaves training alone, and after Branch the branch just goes on.
    if not wanted.asks_same(agreed) and (wanted.on_pin in (PAUSE, BRANCH) or resumes):
        changes["epoch"] = status.epoch + 1
    if wanted.on_pin == BRANCH:
        changes["branch"] = branch_name(status.epoch + 1)
        changes["branch_base"] = NameOnly(name=wanted.name)
    return status.model_copy(update=changes)


def _follow(view: HeadView, wanted: Request | None) -> CheckpointHeadStatus:
    """A head that only serves takes branch and epoch from the leading one."""
    changes: dict[str, object] = {}
    if wanted is not None:
        changes["epoch_cause"] = replace(
            wanted, on_pin=CONTINUE if wanted.mode == PIN else ""
        ).text()
    if view.leader is not None:
        leader = view.leader.status
        changes |= {
            "epoch": max(leader.epoch, view.head.status.epoch),
            "branch": leader.branch,
            "branch_base": leader.branch_base,
        }
    return view.head.status.model_copy(update=changes)


def _target(view: HeadView, status: CheckpointHeadStatus, *, refused: bool) -> Point | None:
    """The checkpoint to serve; None when there is nothing that could be."""
    agreed = Request.parse(status.epoch_cause)
    held = _held_point(view.lineage, status)
    if agreed is None or refused:
        return held
    if agreed.mode == PIN:
        return view.lineage.place(agreed.name) or held
    line = _ready_line(view, status)
    names = [checkpoint.metadata.name for checkpoint in line]
    ahead, stays = line, held
    if held is not None and held.name in names:
        ahead = line[names.index(held.name) + 1 :]
    elif held is not None and view.lineage.place(held.name) is None:
        # Deleted, or not in the cache yet: that must never move the head back.
        ahead = [checkpoint for checkpoint in line if checkpoint.spec.step > held.step]
    elif held != view.lineage.root:
        # Off the live line with nothing that passes: where the live branch started.
        start = view.lineage.base(status.branch) or ref_name(status.branch_base)
        stays = view.lineage.place(start) if start else view.lineage.root
    passing = [checkpoint for checkpoint in ahead if passes(view.head.spec, checkpoint)]
    return point(passing[-1]) if passing else stays


def _held_point(lineage: Lineage, status: CheckpointHeadStatus) -> Point | None:
    """The target so far; from what is served if its Checkpoint is not to be found."""
    if status.target is None:
        return None
    place, current = lineage.place(status.target.name), status.current
    if place is None and current is not None and current.name == status.target.name:
        return Point(current.name, current.step, current.digest)
    return place


def _ready_line(view: HeadView, status: CheckpointHeadStatus) -> list[Checkpoint]:
    """The Ready checkpoints of the live branch and its ancestors, oldest first."""
    line = view.lineage.line(status.branch, ref_name(status.branch_base))
    return [c for c in line if conditions.is_true(c.status.conditions, conditions.READY)]


def _latest(view: HeadView, status: CheckpointHeadStatus) -> NameOnly | None:
    if line := _ready_line(view, status):
        return NameOnly(name=line[-1].metadata.name)
    return NameOnly(name=view.lineage.root.name) if view.lineage.root else None


def _served(view: HeadView, adapter: str) -> bool:
    """Whether every ready rollout, and at least one, confirmed the adapter; or none is wanted."""
    if view.model is not None and view.model.spec.rollout.replicas == 0:
        return True
    confirmed = [rollout for rollout in view.rollouts if _has(rollout, adapter)]
    return bool(confirmed) and all(
        _has(rollout, adapter) for rollout in view.rollouts if rollout.ready
    )


def _has(rollout: Rollout, adapter: str) -> bool:
    return rollout.loaded is not None and adapter in rollout.loaded


def _pods(view: HeadView, adapter: str, digest: str) -> list[PodDigest]:
    """What each pod serves: the target once confirmed, else what it served before."""
    before = {pod.name: pod for pod in view.head.status.pods}
    pods = []
    for rollout in sorted(view.rollouts, key=lambda rollout: rollout.name):
        if _has(rollout, adapter):
            pods.append(PodDigest(name=rollout.name, digest=digest))
        elif rollout.name in before:
            pods.append(before[rollout.name])
    return pods


def _is_current(status: CheckpointHeadStatus, target: Point) -> bool:
    current = status.current
    return current is not None and (current.name, current.digest) == (target.name, target.digest)


def _move(
    status: CheckpointHeadStatus, target: Point, now: str
) -> tuple[CheckpointHeadStatus, HeadMove]:
    """The status once the rollouts serve the target."""
    agreed = Request.parse(status.epoch_cause) or Request(TRACK)
    if agreed.mode == PIN:
        reason = "Branched" if agreed.on_pin == BRANCH else "Pinned"
    else:
        was_pinned = bool(status.history) and status.history[0].reason in ("Pinned", "Branched")
        reason = "Unpinned" if was_pinned else "Advanced"
    move = HeadMove.model_validate(
        {
            "name": target.name,
            "step": target.step,
            "epoch": status.epoch,
            "reason": reason,
            "time": now,
        }
    )
    current = CurrentCheckpoint(
        name=target.name, step=target.step, digest=target.digest, epoch=status.epoch
    )
    previous = NameOnly(name=status.current.name) if status.current else status.previous
    changes = {
        "current": current,
        "previous": previous,
        "history": [move, *status.history][:HISTORY],
    }
    return status.model_copy(update=changes), move


def _findings(
    view: HeadView, status: CheckpointHeadStatus, target: Point, served: bool
) -> list[Finding]:
    shown = target.name or "the base"
    if not served:
        return _not_served(view, shown)
    if not _is_current(status, target):
        return conditions.reconciling("Moving", f"rollouts serve {shown}, to be confirmed")
    agreed = Request.parse(status.epoch_cause)
    if agreed is not None and agreed.mode == PIN:
        return conditions.ready(PINNED, f"pinned to {shown}, onPin {view.head.spec.on_pin}")
    gate = view.head.spec.gate
    if gate is not None and status.latest is not None and status.latest.name != target.name:
        return conditions.ready(
            "Tracking", f"serves {shown}; {status.latest.name} is below {gate.metric} {gate.min}"
        )
    return conditions.ready("Tracking", f"serves {shown}")


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


def _settle(
    view: HeadView, status: CheckpointHeadStatus, findings: list[Finding], now: str
) -> list[Condition]:
    agreed = Request.parse(status.epoch_cause)
    pin = agreed if agreed is not None and agreed.mode == PIN else None
    pinned = Finding(
        PINNED,
        "True" if pin else "False",
        pin.on_pin if pin else "Tracking",
        f"held at {pin.name}" if pin else "",
    )
    old = view.head.status.conditions
    return conditions.settle(old, [*findings, pinned], view.head.metadata.generation, now)
