"""A run: whether it advances, what its runner needs, and how far it is.

Its optimizer steps are counted by the trainer over all branches and terms, so that
``status.step`` never falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from espalier.api.checkpoint import Checkpoint
from espalier.api.meta import Metric, ObjectRef
from espalier.api.metric_names import is_measured
from espalier.api.run.status import Applied, TrainingRunStatus
from espalier.core import conditions
from espalier.core.checkpoints import taskset_used
from espalier.core.conditions import Finding
from espalier.core.head import full_weights, head_request
from espalier.core.lineage.lineage import run_step
from espalier.core.run import alignment, bounds, expiry, idle, runner_job
from espalier.core.run import turn as turns
from espalier.core.run.bounds import Used
from espalier.core.run.progress import progress
from espalier.core.run.provenance import provenance
from espalier.core.run.run_health import barren, rollouts_healthy, step_findings
from espalier.core.run.run_view import RunView
from espalier.core.run.run_waits import (
    AWAITING_CLIENT,
    TRAINING,
    advance,
    runner_failure,
    unfit_model,
)
from espalier.core.run.runner_job import RunnerAction
from espalier.core.run.runner_needs import map_keys, peers
from espalier.core.run.turn import SUCCEEDED, TASKS_READY

SUSPENDED = "Suspended"


@dataclass(frozen=True)
class RunDecision:
    """The status to write, what to do with the runner's Job, and when to look again.

    ``expired``: the run itself is to be deleted.
    """

    status: TrainingRunStatus
    runner: RunnerAction
    again_seconds: float | None = None
    expired: bool = False


@dataclass(frozen=True)
class _Stage:
    """Where a run is; ``frees`` its runner, or ``drives`` with one, or leaves it alone.

    ``idle`` is since when its trainer has not been needed. ``in_turn``: the model is its own.
    """

    triple: list[Finding]
    suspended: Finding
    succeeded: Finding
    frees: bool = False
    drives: bool = False
    idle: str | None = None
    in_turn: bool = False


def decide(view: RunView, now: str) -> RunDecision:
    """The next status of a run and what its runner needs; ``now`` is RFC 3339."""
    run, old = view.run, view.run.status
    latest = _latest(view)
    step = max(old.step, view.counted, run_step(view.checkpoints[-1]) if view.checkpoints else 0)
    done = step >= run.spec.steps
    # Its own status may be a moment behind: until then the earlier step's counts.
    of_step = [m for m in latest.status.metrics if not is_measured(m.name)] if latest else []
    metrics = of_step or old.metrics
    spent = bounds.used(old, view.heard, now)
    stage = _stage(view, step, now, spent, metrics)
    training = stage.triple[0].reason in (TRAINING, AWAITING_CLIENT)
    started = old.start_time or (now if training or step else None)
    # Time in a queue does not count to the run.
    runs = stage.in_turn and started is not None and not conditions.in_queue(stage.triple)
    gpus = view.gpus if stage.in_turn else 0
    over = stage.succeeded.status == "True"
    action, again = runner_job.action(view, now, drives=stage.drives, frees=stage.frees, over=over)
    left = expiry.expiry(run, view.owner, now)
    if left is not None and left.due and left.kept:
        stage, action = _kept(view, stage, left.kept)
    findings = [
        *stage.triple,
        stage.suspended,
        stage.succeeded,
        *_tasks_ready(view),
        *step_findings(metrics, run, view.model, barren(run, step)),
        rollouts_healthy(view.model, view.rollouts),
    ]
    told, aged = progress(view.checkpoints, step, run.spec.steps, now, trains=training)
    active_seconds, active_since = bounds.clock(old, now, runs=runs)
    status = TrainingRunStatus(
        observed_generation=run.metadata.generation,
        step=step,
        start_time=started,
        completion_time=(old.completion_time or now) if done else None,
        term=_term(view, latest),
        latest_checkpoint_ref=_latest_ref(latest) or old.latest_checkpoint_ref,
        applied=_applied(latest) or old.applied,
        taskset=(taskset_used.recorded(latest) if latest else None) or old.taskset,
        metrics=metrics,
        progress=told,
        provenance=provenance(view),
        active_seconds=active_seconds,
        active_since=active_since,
        usage=bounds.usage(old, spent, gpus, now),
        idle_since=stage.idle,
        woken_for=old.woken_for,
        saves=old.saves,
        base_evaluations=old.base_evaluations,
        barren_rounds=old.barren_rounds,
        conditions=conditions.settle(old.conditions, findings, run.metadata.generation, now),
    )
    bound = bounds.look_again(run.spec, spent, gpus, runs=runs)
    looks = (again, bound, aged, left.wait if left is not None else None)
    again = min((seconds for seconds in looks if seconds is not None), default=None)
    return RunDecision(status, action, again, left is not None and left.due and not left.kept)


def _kept(view: RunView, stage: _Stage, owner: str) -> tuple[_Stage, RunnerAction]:
    """A run whose time is over and that Git would make again: only its runner's Job goes."""
    found = stage.succeeded
    kept = expiry.kept_message(owner)
    # A failure is told by the message that it had before.
    said = found.message if found.message.endswith(kept) else f"{found.message}. {kept}"
    gone = view.runner is None or view.runner.terminating
    return replace(stage, succeeded=replace(found, message=said)), "Keep" if gone else "Delete"


def _tasks_ready(view: RunView) -> list[Finding]:
    """Whether what the runner mounts and asks is there: a run without leaves its turn."""
    if view.lack is not None:
        return [Finding(TASKS_READY, "False", view.lack.reason, view.lack.message)]
    mounted = ", ".join(dict.fromkeys(one.name for one in map_keys(view.run.spec)))
    found = [f"in ConfigMap {mounted}"] if mounted else []
    found += dict.fromkeys(f"{one.kind} {one.name}" for one in peers(view.run.spec))
    return [Finding(TASKS_READY, "True", "Found", ", ".join(found))] if found else []


def _latest(view: RunView) -> Checkpoint | None:
    """The newest checkpoint of the run; None if that is not the one that its status may name.

    While checkpoints are being deleted the newest that is left was named before: the status keeps
    what it says, and does not go back.
    """
    if not view.checkpoints:
        return None
    old, newest = view.run.status, view.checkpoints[-1]
    if old.latest_checkpoint_ref is None or run_step(newest) >= old.step:
        return newest
    named = old.latest_checkpoint_ref.name
    return newest if any(c.metadata.name == named for c in view.checkpoints) else None


def _stage(view: RunView, step: int, now: str, spent: Used, metrics: Sequence[Metric]) -> _Stage:
    run = view.run
    unsuspended = Finding(SUSPENDED, "False", "NotSuspended")
    if step >= run.spec.steps:
        message = f"{step} of {run.spec.steps} steps"
        done = Finding(SUCCEEDED, "True", "StepsCompleted", message)
        return _Stage(conditions.ready(SUCCEEDED, message), unsuspended, done)
    open_ = Finding(SUCCEEDED, "Unknown", "InProgress", f"{step} of {run.spec.steps} steps")
    if run.spec.suspend:
        finding = Finding(SUSPENDED, "True", "Requested", "spec.suspend is true")
        return _Stage(conditions.ready(SUSPENDED, finding.message), finding, open_, frees=True)
    return (
        _failed(view, spent)
        or _without_turn(view, open_)
        or _held_by_head(view, open_)
        or _held_by_alignment(view, metrics, open_)
        or _in_turn(view, step, now, open_)
    )


def _failed(view: RunView, spent: Used) -> _Stage | None:
    """That a bound of the run is reached, or its runner gave up."""
    unsuspended = Finding(SUSPENDED, "False", "NotSuspended")
    if bound := bounds.reached(view.run.spec, spent):
        lost = Finding(SUCCEEDED, "False", bound.reason, bound.text)
        triple = conditions.stalled(bound.reason, bound.text)
        return _Stage(triple, unsuspended, lost, frees=True)
    if failure := runner_failure(view):
        lost = Finding(SUCCEEDED, "False", failure.reason, failure.detail)
        triple = conditions.stalled(failure.reason, failure.detail)
        return _Stage(triple, unsuspended, lost)
    return None


def _held_by_alignment(view: RunView, metrics: Sequence[Metric], open_: Finding) -> _Stage | None:
    """That the log-probs of trainer and sampler are too far apart to train on."""
    misaligned = alignment.held(view.run, metrics)
    if not misaligned:
        return None
    finding = Finding(SUSPENDED, "True", alignment.MISALIGNED, misaligned)
    triple = conditions.ready(alignment.MISALIGNED, misaligned)
    return _Stage(triple, finding, open_, frees=True)


def _without_turn(view: RunView, open_: Finding) -> _Stage | None:
    """That the run is not in the queue of its model, or not at its head."""
    run, unsuspended = view.run, Finding(SUSPENDED, "False", "NotSuspended")
    if (lack := view.lack) is not None:
        # Not Stalled: it may be next in the same apply.
        return _Stage(conditions.reconciling(lack.reason, lack.message), unsuspended, open_)
    turn = turns.active([s for s in view.siblings if s.metadata.uid != run.metadata.uid] + [run])
    if turn is None or turn.metadata.uid == run.metadata.uid:
        return None
    message = f"TrainingRun {turn.metadata.name} trains {run.spec.model_ref.name}; waits for it"
    triple = conditions.reconciling("ModelBusy", message, "Unknown")
    return _Stage(triple, unsuspended, open_, frees=True)


def _in_turn(view: RunView, step: int, now: str, open_: Finding) -> _Stage:
    """The stage of a run that may train."""
    unsuspended = Finding(SUSPENDED, "False", "NotSuspended")
    since = idle.since(view.run, view.model, view.quiet, now)
    if since is not None and unfit_model(view) is None:
        return _Stage(_idle(view), unsuspended, open_, idle=since, in_turn=True)
    triple, drives = advance(view, step)
    # A runner without servers would only wait, until its Job gave up.
    frees = conditions.in_queue(triple) and not drives
    return _Stage(triple, unsuspended, open_, frees=frees, drives=drives, in_turn=True)


def _idle(view: RunView) -> list[Finding]:
    seconds = idle.limit(view.run, view.model)
    message = f"no call for {seconds} s (spec.trainer.idleSeconds): the next takes the trainer back"
    return conditions.ready(idle.IDLE, message)


def _held_by_head(view: RunView, open_: Finding) -> _Stage | None:
    """That training must not go on from where the head is."""
    if view.head is None:
        return None
    if head_request.paused(view.head):
        message = f"CheckpointHead {view.head.metadata.name} is pinned with onPin: Pause"
        finding = Finding(SUSPENDED, "True", "HeadPinned", message)
        return _Stage(conditions.ready("HeadPinned", message), finding, open_, frees=True)
    unsampled = full_weights.unsampled(view.run, view.model, view.head)
    if unsampled is not None:
        unsuspended = Finding(SUSPENDED, "False", "NotSuspended")
        return _Stage(unsampled, unsuspended, open_, frees=True)
    return None


def _term(view: RunView, latest: Checkpoint | None) -> int:
    """The term that the run trains under, or last made a step under."""
    acknowledged = view.head.status.term if view.head is not None and view.assigned else 0
    return max(view.run.status.term, acknowledged, latest.spec.term if latest is not None else 0)


def _latest_ref(latest: Checkpoint | None) -> ObjectRef | None:
    return ObjectRef(name=latest.metadata.name) if latest else None


def _applied(latest: Checkpoint | None) -> Applied | None:
    if latest is None:
        return None
    used = latest.spec.hyperparameters
    return Applied(learning_rate=used.learning_rate, group_size=used.group_size)
