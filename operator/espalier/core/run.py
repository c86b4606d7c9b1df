"""A run: whether it advances, what its runner needs, and how far it is.

Its optimizer steps are counted by the trainer over all branches and epochs, so that
``status.step`` never falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHead
from espalier.api.meta import ObjectRef
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import Applied, Progress, TrainingRun, TrainingRunStatus
from espalier.api.wire import Problem
from espalier.core import conditions, full_weights, pods, request
from espalier.core import turn as turns
from espalier.core.commits import run_step
from espalier.core.conditions import Finding
from espalier.core.health import rollouts_healthy, step_findings
from espalier.core.model import TRAINER_READY
from espalier.core.pods import Job, Pod
from espalier.core.turn import SUCCEEDED

SUSPENDED = "Suspended"
TRAINING = "Training"
# A runner that ended before its run did is replaced, and not more often than this.
PAUSE = timedelta(seconds=15)
PACE_STEPS = 6
RunnerAction = Literal["Keep", "Create", "Delete"]


@dataclass(frozen=True)
class RunView:
    """All that a run's decision depends on.

    ``checkpoints`` are those of this very run, in the order that they were made.
    ``assigned``: the trainer acknowledged this run under the head's epoch. ``counted`` are the
    steps of the run whose commits have been dealt with; ``trained`` those that the trainer has on
    record, asked after the runner had ended, None: not known. ``problem`` is what it reports.
    """

    run: TrainingRun
    model: TrainableModel | None
    head: CheckpointHead | None
    siblings: Sequence[TrainingRun]
    checkpoints: Sequence[Checkpoint] = ()
    trainer_pods: Sequence[Pod] = ()
    assigned: bool = False
    problem: Problem | None = None
    runner: Job | None = None
    runner_pods: Sequence[Pod] = ()
    counted: int = 0
    trained: int | None = None


@dataclass(frozen=True)
class RunDecision:
    """The status to write, what to do with the runner's Job, and when to look again."""

    status: TrainingRunStatus
    runner: RunnerAction
    again_seconds: float | None = None


@dataclass(frozen=True)
class _Stage:
    """Where a run is; ``frees`` its runner, or ``drives`` with one, or leaves it alone."""

    triple: list[Finding]
    suspended: Finding
    succeeded: Finding
    frees: bool = False
    drives: bool = False


def decide(view: RunView, now: str) -> RunDecision:
    """The next status of a run and what its runner needs; ``now`` is RFC 3339."""
    run, old = view.run, view.run.status
    latest = _latest(view)
    step = max(old.step, view.counted, run_step(view.checkpoints[-1]) if view.checkpoints else 0)
    done = step >= run.spec.steps
    stage = _stage(view, step)
    training = stage.triple[0].reason == TRAINING
    action, again = _runner(view, stage, now)
    metrics = latest.status.metrics if latest else old.metrics
    findings = [
        *stage.triple,
        stage.suspended,
        stage.succeeded,
        *step_findings(metrics, run, view.model),
        rollouts_healthy(view.model),
    ]
    status = TrainingRunStatus(
        observed_generation=run.metadata.generation,
        step=step,
        start_time=old.start_time or (now if training or step else None),
        completion_time=(old.completion_time or now) if done else None,
        epoch=_epoch(view, latest),
        latest_checkpoint_ref=_latest_ref(latest) or old.latest_checkpoint_ref,
        applied=_applied(latest) or old.applied,
        metrics=metrics,
        progress=_progress(view.checkpoints, step, run.spec.steps),
        conditions=conditions.settle(old.conditions, findings, run.metadata.generation, now),
    )
    return RunDecision(status, action, again)


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


def _stage(view: RunView, step: int) -> _Stage:
    run = view.run
    unsuspended = Finding(SUSPENDED, "False", "NotSuspended")
    if step >= run.spec.steps:
        message = f"{step} of {run.spec.steps} steps"
        done = Finding(SUCCEEDED, "True", "StepsCompleted", message)
        return _Stage(conditions.ready(SUCCEEDED, message), unsuspended, done)
    open_ = Finding(SUCCEEDED, "Unknown", "InProgress", f"{step} of {run.spec.steps} steps")
    if run.spec.suspend:
        said = Finding(SUSPENDED, "True", "Requested", "spec.suspend is true")
        return _Stage(conditions.ready(SUSPENDED, said.message), said, open_, frees=True)
    if failure := _runner_failure(view):
        lost = Finding(SUCCEEDED, "False", failure.reason, failure.detail)
        triple = conditions.stalled(failure.reason, failure.detail)
        return _Stage(triple, unsuspended, lost)
    turn = turns.active([s for s in view.siblings if s.metadata.uid != run.metadata.uid] + [run])
    if turn is not None and turn.metadata.uid != run.metadata.uid:
        message = f"TrainingRun {turn.metadata.name} trains {run.spec.model_ref.name}; waits for it"
        triple = conditions.reconciling("ModelBusy", message, "Unknown")
        return _Stage(triple, unsuspended, open_, frees=True)
    if held := _held_by_head(view, open_):
        return held
    triple, drives = _advance(view, step)
    return _Stage(triple, unsuspended, open_, drives=drives)


def _held_by_head(view: RunView, open_: Finding) -> _Stage | None:
    """That training must not go on from where the head is."""
    if view.head is None:
        return None
    if request.paused(view.head):
        message = f"CheckpointHead {view.head.metadata.name} is pinned with onPin: Pause"
        said = Finding(SUSPENDED, "True", "HeadPinned", message)
        return _Stage(conditions.ready("HeadPinned", message), said, open_, frees=True)
    unsampled = full_weights.unsampled(view.run, view.model, view.head)
    if unsampled is not None:
        unsuspended = Finding(SUSPENDED, "False", "NotSuspended")
        return _Stage(unsampled, unsuspended, open_, frees=True)
    return None


def _runner_failure(view: RunView) -> Problem | None:
    """Why the runner gave up on the run as it is specified now."""
    if said := turns.failure(view.run):
        return Problem(detail=said.message, reason=said.reason)
    job = view.runner
    if job is None or not job.failed or job.generation < view.run.metadata.generation:
        return None
    found = pods.problem(view.runner_pods)
    if found is not None:
        detail = f"{pods.explain(found)}. Edit the run to try again"
        return Problem(detail=detail, reason=found.reason)
    reason = job.failure.partition(":")[0] or "RunnerFailed"
    return Problem(detail=f"{job.failure}. Edit or suspend and resume to try again", reason=reason)


def _advance(view: RunView, step: int) -> tuple[list[Finding], bool]:
    """What holds a run whose turn it is, or that it trains; and whether its runner may run."""
    starting = "Restarting" if step else "Starting"
    if unfit := _unfit_model(view):
        return unfit, False
    if view.problem is not None:
        return conditions.stalled(view.problem.reason, pods.explain(view.problem)), True
    if missing := _missing_server(view):
        return conditions.reconciling(starting, missing), False
    driven = view.run.spec.driver == "Runner"
    if driven and not any(pod.ready for pod in pods.live(view.runner_pods)):
        message = pods.waiting(pods.live(view.runner_pods)) or "no pod yet"
        return conditions.reconciling(starting, f"runner: {message}"), True
    return conditions.ready(TRAINING, f"step {step} of {view.run.spec.steps}"), True


def _unfit_model(view: RunView) -> list[Finding] | None:
    """Why the model cannot be trained."""
    if view.model is None:
        # Not Stalled: it may be next in the same apply, and Argo CD and Flux give up at Stalled.
        name = view.run.spec.model_ref.name
        message = f"spec.modelRef: TrainableModel {name} does not exist: create it"
        return conditions.reconciling("ModelNotFound", message)
    said = conditions.find(view.model.status.conditions, conditions.STALLED)
    if said is None or said.status != "True":
        return _untemplated(view.run, view.model)
    return conditions.stalled(said.reason, f"model {view.model.metadata.name}: {said.message}")


def _untemplated(run: TrainingRun, model: TrainableModel) -> list[Finding] | None:
    """The runner's tasks are chats, and nothing turns them into prompts."""
    resolved = model.status.resolved
    missing = resolved is not None and resolved.chat_template == "Missing"
    if not missing or run.spec.driver != "Runner":
        return None
    message = (
        f"the base of model {model.metadata.name} has no chat template, and a run's tasks are "
        "chats: create the model with spec.source.base.chatTemplate"
    )
    return conditions.stalled("ChatTemplateMissing", message)


def _missing_server(view: RunView) -> str:
    """What trainer or rollouts are doing before they can serve the run; empty if they do."""
    if not view.assigned:
        seen = view.model.status.conditions if view.model is not None else []
        said = conditions.find(seen, TRAINER_READY)
        return f"trainer: {said.message if said else 'not seen yet'}"
    if view.head is None or view.head.status.current is None:
        return "rollouts do not serve the head yet"
    return ""


def _runner(view: RunView, stage: _Stage, now: str) -> tuple[RunnerAction, float | None]:
    """What to do with the Job of the runner, and in how many seconds to look again."""
    job = view.runner
    if view.run.spec.driver != "Runner" or (job is not None and job.terminating):
        return "Keep", None
    if job is None:
        return ("Create" if stage.drives else "Keep"), None
    if not job.finished:
        return ("Delete" if stage.frees else "Keep"), None
    # A runner ends once the trainer has its last step: the commits that are not here yet follow.
    if not stage.drives or view.trained is None or view.trained >= view.run.spec.steps:
        return "Keep", None
    wait = 0.0
    if job.completed and job.generation >= view.run.metadata.generation:
        wait = (_time(job.completed) + PAUSE - _time(now)).total_seconds()
    return ("Keep", wait) if wait > 0 else ("Delete", None)


def _epoch(view: RunView, latest: Checkpoint | None) -> int:
    """The epoch that the run trains under, or last made a step under."""
    told = view.head.status.epoch if view.head is not None and view.assigned else 0
    return max(view.run.status.epoch, told, latest.spec.epoch if latest is not None else 0)


def _latest_ref(latest: Checkpoint | None) -> ObjectRef | None:
    return ObjectRef(name=latest.metadata.name) if latest else None


def _applied(latest: Checkpoint | None) -> Applied | None:
    if latest is None:
        return None
    used = latest.spec.hyperparameters
    return Applied(learning_rate=used.learning_rate, group_size=used.group_size)


def _progress(mine: Sequence[Checkpoint], step: int, steps: int) -> Progress:
    """Percent, and the time left at the pace of the last few steps."""
    left = max(0, steps - step)
    recent = [_time(c.metadata.creation_timestamp) for c in mine[-PACE_STEPS:]]
    remaining = None
    if left == 0:
        remaining = 0
    elif len(recent) > 1:
        pace = (recent[-1] - recent[0]).total_seconds() / (len(recent) - 1)
        remaining = max(0, round(pace * left))
    percent = min(100, 100 * step // steps)
    return Progress(percent=percent, estimated_remaining_seconds=remaining)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
