"""A model: its source, the pods that serve and train it, its tree, and whether all is well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from espalier.api.checkpointhead import CheckpointHead
from espalier.api.meta import ObjectRef
from espalier.api.model.status import Endpoint, Read, RolloutStatus, TrainableModelStatus
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.api.wire.problem import Problem
from espalier.core import conditions
from espalier.core.checkpoints import imported
from espalier.core.checkpoints.scrub import ScrubDecision
from espalier.core.conditions import Finding
from espalier.core.lineage.lineage import Lineage
from espalier.core.manifests.intent import Manifest
from espalier.core.manifests.labels import child_labels
from espalier.core.model import default_head, drawn_tree, reads, reported, source_shown
from espalier.core.model.source import SourceDecision
from espalier.core.pods import pods
from espalier.core.pods.blockers import Blocker
from espalier.core.pods.pods import Pod


@dataclass(frozen=True)
class ModelView:
    """All that a model's decision depends on; ``trains`` is whether a run wants the trainer.

    ``warnings`` and ``problem`` are what the trainer reports; None: nothing has been heard.
    ``namesake`` is a head of another model that has this model's name. ``blockers`` are why pods
    cannot be made, by condition. ``idle_run`` is the run whose trainer was freed for want of calls.
    ``reads`` is what the pods may read of other models, each while it is the turn of its run, now
    ``run``.
    """

    model: TrainableModel
    source: SourceDecision
    lineage: Lineage
    heads: Sequence[CheckpointHead] = ()
    trainer_pods: Sequence[Pod] = ()
    rollout_pods: Sequence[Pod] = ()
    trains: bool = False
    gateway_url: str = ""
    warnings: Sequence[Problem] | None = None
    problem: Problem | None = None
    namesake: CheckpointHead | None = None
    blockers: Mapping[str, Blocker] = field(default_factory=dict)
    idle_run: str = ""
    scrub: ScrubDecision | None = None
    reads: Sequence[Read] = ()
    run: TrainingRun | None = None


@dataclass(frozen=True)
class ModelDecision:
    """The status to write and how many pods to run; None: leave what runs as it is.

    ``head_in`` is the seconds until the default head is to be created, None where there is no need.
    ``root`` is the Checkpoint of an imported adapter, to be created. ``sampled`` and ``trained``
    are the other models whose checkpoints samplers and trainer see.
    """

    status: TrainableModelStatus
    trainer_replicas: int | None
    rollout_replicas: int | None
    head_in: float | None
    root: Manifest | None = None
    sampled: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Workload:
    """The finding about a group of pods."""

    finding: Finding
    state: Literal["Ready", "Idle", "Waiting", "GaveUp"]


def decide(view: ModelView, now: str) -> ModelDecision:
    """The next status of a model and the scale of its pods; ``now`` is RFC 3339."""
    model = view.model
    resolved = view.source.resolved is not None
    trainer = _workload(
        view,
        conditions.TRAINER_READY,
        1 if view.trains else 0,
        view.trainer_pods,
        unwanted=_untrained(view.idle_run),
    )
    rollouts = _workload(
        view,
        conditions.ROLLOUTS_READY,
        model.spec.rollout.replicas,
        view.rollout_pods,
        unwanted="spec.rollout.replicas: 0",
        resolved=resolved,
    )
    unfit = _unfit_context(view) or _unfit_tree(view)
    if unfit is not None:
        rollouts = _Workload(unfit, "GaveUp")
    triple = _headless(view) or _overall(view.source, trainer, rollouts)
    reports = reported.findings(view.warnings, view.problem, model.status.conditions)
    scrubbed = [view.scrub.finding] if view.scrub is not None else []
    findings = [*triple, view.source.finding, trainer.finding, rollouts.finding, *reports]
    findings += scrubbed
    name, origin = model.metadata.name, model.spec.source.checkpoint_ref
    status = TrainableModelStatus(
        observed_generation=model.metadata.generation,
        resolved=view.source.resolved,
        source=source_shown.in_a_word(model),
        import_progress=view.source.progress,
        root_checkpoint_ref=ObjectRef(name=origin.name) if origin and resolved else None,
        reads=[*view.reads],
        endpoint=Endpoint(slug=name, url=view.gateway_url),
        tree=drawn_tree.grown(view.lineage, view.heads, name, model.status.tree),
        rollout=_rollout_status(name, view.rollout_pods),
        scrub=view.scrub.status if view.scrub is not None else model.status.scrub,
        conditions=conditions.settle(
            model.status.conditions, findings, model.metadata.generation, now
        ),
    )
    wanted = model.spec.rollout.replicas
    return ModelDecision(
        status,
        trainer_replicas=_scale(int(view.trains), trainer) if resolved and not unfit else None,
        rollout_replicas=_scale(wanted, rollouts) if resolved and not unfit else None,
        head_in=_head_in(view, now),
        root=imported.root(model, view.source.resolved, view.lineage),
        sampled=reads.folders(view.reads, reads.named(model, ())),
        trained=reads.folders(view.reads, reads.named(model, [view.run] if view.run else ())),
    )


def _rollout_status(name: str, found: Sequence[Pod]) -> RolloutStatus:
    labels = child_labels("rollout", name)
    selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
    return RolloutStatus(replicas=len(pods.live(found)), selector=selector)


def _unfit_context(view: ModelView) -> Finding | None:
    """That the base takes no context as long as asked for: no engine would start."""
    resolved = view.source.resolved
    limit = resolved.context_tokens if resolved is not None else None
    asked = view.model.spec.rollout.max_model_tokens
    if limit is None or asked <= limit:
        return None
    message = (
        f"spec.rollout.maxModelTokens is {asked}, and the base takes {limit}: set {limit} or less"
    )
    return Finding(conditions.ROLLOUTS_READY, "False", "ContextTooLong", message)


def _unfit_tree(view: ModelView) -> Finding | None:
    """That an earlier model of the name left checkpoints that this one cannot go on from."""
    model = view.model.metadata.name
    own = view.model.spec.adapter
    tips = [line[-1] for line in view.lineage.by_branch.values()]
    strange = next((tip for tip in tips if tip.spec.lora_rank != own.lora_rank), None)
    if strange is None:
        return None
    rank = strange.spec.lora_rank
    theirs = f"spec.adapter.rank {rank}" if rank else "spec.adapter.type Full"
    mine = f"spec.adapter.rank {own.rank}" if own.lora_rank else "spec.adapter.type Full"
    message = (
        f"Checkpoint {strange.metadata.name} and others are of an earlier model {model} with "
        f"{theirs}, and this one has {mine}: create it with {theirs} or under another name, or "
        f"delete those Checkpoints (kubectl delete checkpoints -l espalier.dev/model={model})"
    )
    return Finding(conditions.ROLLOUTS_READY, "False", "AdapterMismatch", message)


def _head_in(view: ModelView, now: str) -> float | None:
    """Seconds until the model gets its default head; None where one of its name is there."""
    name = view.model.metadata.name
    # Be it another model's.
    there = view.namesake is not None or any(head.metadata.name == name for head in view.heads)
    return None if there else default_head.due_in(view.model, now)


def _scale(wanted: int, workload: _Workload) -> int:
    """No pod is started again and again over a mistake that only a person can mend."""
    return 0 if workload.state == "GaveUp" else wanted


def _workload(
    view: ModelView,
    type_: str,
    wanted: int,
    found: Sequence[Pod],
    *,
    unwanted: str,
    resolved: bool = True,
) -> _Workload:
    """What the pods of a group are doing, ``wanted`` of them being asked for; why, if none is."""
    if wanted == 0:
        return _Workload(Finding(type_, "False", "Idle", unwanted), "Idle")
    if not resolved:
        return _Workload(Finding(type_, "False", "SourceNotResolved", ""), "Waiting")
    present = pods.live(found)
    ready = [pod for pod in present if pod.ready]
    others = [pod for pod in present if not pod.ready]
    problem = pods.problem(others)
    hopeless = not ready and all(pod.problem is not None for pod in others)
    if hopeless and (gave_up := _gave_up(view.model, type_, problem)):
        return _Workload(gave_up, "GaveUp")
    if problem is not None:
        # The others go on: the mistake may be a node's, or an edit's that has reached one of them.
        message = f"{len(ready)} of {wanted} ready. {problem.text}"
        return _Workload(Finding(type_, "False", problem.reason, message), "Waiting")
    if len(ready) >= wanted:
        killed = next((f". Before this start: {pod.killed}" for pod in ready if pod.killed), "")
        message = f"{wanted} of {wanted}{killed}"
        return _Workload(Finding(type_, "True", "PodsReady", message), "Ready")
    reason = next((p.waiting_reason for p in present if p.waiting_reason), "Starting")
    why = pods.waiting(present)
    blocker = view.blockers.get(type_) if len(present) < wanted else None
    if blocker is not None:
        reason = blocker.reason
        why = "; ".join(filter(None, (str(blocker), why)))
    message = f"{len(ready)} of {wanted} ready. {why}".strip()
    return _Workload(Finding(type_, "False", reason, message), "Waiting")


def _untrained(idle_run: str) -> str:
    return f"TrainingRun {idle_run} waits for a call" if idle_run else "no run trains the model"


def _gave_up(model: TrainableModel, type_: str, problem: Problem | None) -> Finding | None:
    """The problem that pods ended with; remembered when they are gone, until an edit."""
    if problem is not None:
        return Finding(type_, "False", problem.reason, problem.text)
    condition = conditions.find(model.status.conditions, type_)
    halted = conditions.true(model.status.conditions, conditions.STALLED)
    if condition is None or halted is None or condition.status != "False":
        return None
    same = condition.reason == halted.reason and condition.message == halted.message
    if not same or condition.observed_generation != model.metadata.generation:
        return None
    return Finding(type_, "False", condition.reason, condition.message)


def _headless(view: ModelView) -> list[Finding] | None:
    """Without a head of its own name nothing says what a model serves."""
    if view.namesake is None:
        return None
    name, other = view.model.metadata.name, view.namesake.spec.model_ref.name
    message = (
        f"CheckpointHead {name} is of model {other}, so {name} has no head of its own: delete that "
        "head and create it under another name"
    )
    return conditions.stalled("HeadNameTaken", message)


def _overall(origin: SourceDecision, trainer: _Workload, rollouts: _Workload) -> list[Finding]:
    """Ready, Reconciling and Stalled of the whole."""
    finding = origin.finding
    if origin.permanent:
        return conditions.stalled(finding.reason, finding.message)
    if origin.resolved is None:
        return conditions.reconciling(finding.reason, finding.message)
    for workload in (rollouts, trainer):
        if workload.state == "GaveUp":
            return conditions.stalled(workload.finding.reason, workload.finding.message)
    for workload in (rollouts, trainer):
        if workload.state == "Waiting":
            text = f"{workload.finding.type}: {workload.finding.message}"
            return conditions.reconciling(workload.finding.reason, text)
    return conditions.ready("Ready", f"trainer {trainer.state}, rollouts {rollouts.state}")
