"""What a run waits for, whose turn it is or that it trains; and why its runner gave up on it."""

from __future__ import annotations

from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.api.wire.problem import Problem
from espalier.core import conditions
from espalier.core.conditions import Finding
from espalier.core.pods import pods
from espalier.core.run import continued
from espalier.core.run import turn as turns
from espalier.core.run.run_health import barren
from espalier.core.run.run_view import RunView
from espalier.core.run.runner_needs import UNCONFIGURED, unreadable_secret

TRAINING = "Training"
AWAITING_CLIENT = "AwaitingClient"
AGAIN = "Edit the run, or suspend and resume it, to try again"


def runner_failure(view: RunView) -> Problem | None:
    """Why the runner gave up on the run as it is specified now."""
    if condition := turns.failure(view.run):
        return Problem(detail=condition.message, reason=condition.reason)
    job, kept = view.runner, pods.outlived(view.runner_pods)
    if job is None or job.generation < view.run.metadata.generation:
        return None
    found = pods.problem(view.runner_pods)
    if found is not None and (job.failed or kept is not None):
        return Problem(detail=f"{found.text}. {AGAIN}", reason=found.reason)
    if not job.failed:
        return None
    reason = job.failure.partition(":")[0] or "RunnerFailed"
    words = pods.last_words(view.runner_pods)
    last = f" The last try: {words}." if words else ""
    return Problem(detail=f"{job.failure}.{last} {AGAIN}", reason=reason)


def advance(view: RunView, step: int) -> tuple[list[Finding], bool]:
    """What holds a run whose turn it is, or that it trains; and whether its runner may run."""
    starting = "Restarting" if step else "Starting"
    if unfit := unfit_model(view):
        return unfit, False
    if view.problem is not None:
        return conditions.stalled(view.problem.reason, view.problem.text), True
    if missing := _missing_server(view, starting):
        return missing, False
    shown = f"step {step} of {view.run.spec.steps}"
    if view.driven:
        if told := barren(view.run, step):
            shown = f"{shown}; no group teaches in round {told.rounds} for the next: {told.message}"
        waits = _missing_runner(view, starting)
        return waits or conditions.ready(TRAINING, shown), True
    if not view.checkpoints and not step:
        message = f"{shown}: spec.driver is Client, and no script has taken a step yet"
        return conditions.ready(AWAITING_CLIENT, message), True
    return conditions.ready(TRAINING, shown), True


def unfit_model(view: RunView) -> list[Finding] | None:
    """Why the model cannot be trained by this run."""
    if strange := continued.unknown(view.run, view.checkpoints):
        return conditions.reconciling("ContinuesUnknown", strange)
    if view.model is None:
        # Not Stalled: it may be next in the same apply, and Argo CD and Flux give up at Stalled.
        name = view.run.spec.model_ref.name
        message = f"spec.modelRef: TrainableModel {name} does not exist: create it"
        return conditions.reconciling("ModelNotFound", message)
    stalled = conditions.true(view.model.status.conditions, conditions.STALLED)
    if stalled is None:
        return _untemplated(view.run, view.model)
    return conditions.stalled(
        stalled.reason, f"model {view.model.metadata.name}: {stalled.message}"
    )


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


def _missing_server(view: RunView, starting: str) -> list[Finding] | None:
    """What trainer or rollouts are doing before they can serve the run."""
    if view.driven and view.model is not None and not view.rollouts_wanted:
        message = (
            f"spec.rollout.replicas of TrainableModel {view.model.metadata.name} is 0, and the run "
            "samples from its rollouts: set it to 1 or more"
        )
        return conditions.reconciling("RolloutsIdle", message)
    if not view.assigned:
        return _said(view, conditions.TRAINER_READY, "trainer", starting)
    if view.driven and not view.rollouts:
        return _said(view, conditions.ROLLOUTS_READY, "rollouts", starting)
    if view.head is None or view.head.status.current is None:
        return conditions.reconciling(starting, "rollouts do not serve the head yet")
    return None


def _said(view: RunView, type_: str, who: str, starting: str) -> list[Finding]:
    """What the model says of its servers; with its reason where that is more than a start."""
    seen = view.model.status.conditions if view.model is not None else []
    condition = conditions.find(seen, type_)
    message = condition.message if condition is not None else "not seen yet"
    if condition is not None and condition.status == "True":
        message = "ready, and not heard of yet by the run"
    text = f"{who}: {message}"
    if condition is None or condition.status != "False":
        return conditions.reconciling(starting, text)
    return _held_up(condition.reason, text, starting)


def _missing_runner(view: RunView, starting: str) -> list[Finding] | None:
    """What the runner's Job or pod waits for."""
    present = pods.live(view.runner_pods)
    if any(pod.ready for pod in present):
        return None
    if view.runner is not None and view.runner.suspended:
        return _suspended(view)
    if kept := pods.outlived(present):
        return conditions.reconciling("SidecarRunning", f"runner: {pods.keepers(kept)}")
    if view.blocker is not None and not view.runner_pods:
        return conditions.reconciling(view.blocker.reason, f"runner: {view.blocker.message}")
    reason = next((p.waiting_reason for p in present if p.waiting_reason), starting)
    if reason == UNCONFIGURED and (
        unread := unreadable_secret(view.run.spec, pods.waiting(present))
    ):
        return conditions.reconciling(reason, f"runner: {unread}")
    words = pods.last_words(p for p in view.runner_pods if p.finished)
    again = f"; the try before: {words}" if words else ""
    message = f"runner: {pods.waiting(present) or 'no pod yet'}{again}"
    return _held_up(reason, message, starting)


def _suspended(view: RunView) -> list[Finding]:
    """Who lets the runner's Job start."""
    if view.queued is not None:
        return conditions.reconciling(view.queued.reason, f"runner: {view.queued.message}")
    message = "runner: its Job is suspended by hand: it starts when its spec.suspend is false"
    return conditions.reconciling("JobSuspended", message)


def _held_up(reason: str, message: str, starting: str) -> list[Finding]:
    """Why pods do not run: by its own reason where that is more than a start."""
    own = conditions.is_trouble(reason) or reason in conditions.IN_QUEUE
    return conditions.reconciling(reason if own else starting, message)
