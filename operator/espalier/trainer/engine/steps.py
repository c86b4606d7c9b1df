"""An optimizer step: computes new weights beside the old, commits them, then installs them."""

from __future__ import annotations

from espalier.api.metric_names import STEP_REWARD, of_step
from espalier.api.wire.problem import Problem
from espalier.api.wire.step import OptimStepRequest
from espalier.trainer import prometheus
from espalier.trainer.batch.step_metrics import GRADIENT_NORM, LEARNING_RATE, checkpoint_metrics
from espalier.trainer.batch.tally import total
from espalier.trainer.compute.adamw import Proposal
from espalier.trainer.engine import checkpoint_files, kept_rollouts, recovery
from espalier.trainer.engine.checkpoint_files import Position, StepState
from espalier.trainer.engine.commands import Answer, Command
from espalier.trainer.engine.measurements import figures
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.problems import CommandError
from espalier.trainer.volume.command_log import Record
from espalier.trainer.volume.inbox import Queued

REWARDS = of_step("reward/")
MISMATCH_KL = "policy/mismatch_kl"


def optim_step(
    state: TrainingState,
    command: Command | Queued,
    request: OptimStepRequest,
    *,
    without_gradient: bool = False,
) -> Answer:
    """Steps, commits and installs; a failure leaves weights and gradients as they were.

    Where a restart has lost gradients, the step fails and drops the rest of its batch.

    ``without_gradient``: a step is taken where the gradient of all tokens is zero, as torch's
    AdamW takes it: with the moments of the steps before.
    """
    if state.lost is not None and not state.lost.weights:
        # HUD's and Tinker's clients have no zero_grad: the step that fails is the end of its batch.
        return _settle(state, state.begin(command), state.lost.problem)
    state.refuse_lost()
    if not state.tallies:
        raise CommandError(
            409,
            "NoGradients",
            "no gradients were accumulated since the last optimizer step",
            "call forward_backward first (a zero-grad or a new term drops gradients)",
        )
    accumulated = total(state.tallies)
    if accumulated.zero_gradient == accumulated.tokens and not without_gradient:
        raise CommandError(
            409,
            "NoGradients",
            f"the gradient of all {accumulated.tokens} accumulated tokens is zero: they have no "
            "advantage, as when all rewards of a group are equal, or the loss clipped them, or the "
            "off-policy correction dropped them; nothing was stepped",
            "add a batch in which rewards differ inside a group, or leave this step out; zero-grad "
            "drops what is accumulated",
        )
    record = state.begin(command)
    try:
        with prometheus.PHASES.labels("optimizer").time():
            proposal = state.compute.propose(request, accumulated.step_factor)
        if not proposal.finite:
            return _refuse(state, record, proposal)
        step = _next_step(state, request, proposal)
        with prometheus.PHASES.labels("commit").time():
            answer = _commit(state, record, request, proposal, step)
    except CommandError:
        # Nothing was touched: the proposal is dropped and the gradients stay.
        state.log.abandon(record)
        raise
    except Exception:
        recovery.undo(state, record)
        raise
    with prometheus.PHASES.labels("install").time():
        state.install(proposal, Position(answer.digest, step.name, step.step))
    state.set_problem(None)
    _count(step)
    return answer


def _count(step: StepState) -> None:
    prometheus.STEPS.inc()
    for series, name in (
        (prometheus.MISMATCH, MISMATCH_KL),
        (prometheus.REWARD, STEP_REWARD),
        (prometheus.GRADIENT_NORM, GRADIENT_NORM[0]),
    ):
        if name in step.metrics:
            series.set(step.metrics[name])


def _refuse(state: TrainingState, record: Record, proposal: Proposal) -> Answer:
    problem = Problem(
        reason="NonFiniteGradient",
        detail=f"the step is not finite (gradient norm {proposal.gradient_norm}); nothing was "
        "stepped and the gradients were dropped",
        remedy="lower the learning rate, set optimizer.gradientClipNorm, or check the rewards",
    )
    answer = _settle(state, record, problem)
    state.set_problem(problem)
    return answer


def _settle(state: TrainingState, record: Record, problem: Problem) -> Answer:
    """Refuses a step for good: what was accumulated is dropped."""
    state.log.settle(record, 409, problem.model_dump_json())
    state.drop_gradients()
    prometheus.REFUSALS.labels(problem.reason).inc()
    return Answer(409, problem.model_dump_json())


def _commit(
    state: TrainingState,
    record: Record,
    request: OptimStepRequest,
    proposal: Proposal,
    step: StepState,
) -> Answer:
    rollouts = kept_rollouts.of_step(state, request)
    stored, created = checkpoint_files.write(
        state.store,
        state.compute,
        proposal,
        step,
        base=state.base,
        key=record.key,
        rollouts=rollouts,
        batch=request.batch,
    )
    try:
        answer = state.record_commit(record, stored, step)
    except CommandError:
        if created:
            state.store.discard(stored)
        raise
    kept_rollouts.mark(state, rollouts)
    return answer


def _next_step(state: TrainingState, request: OptimStepRequest, proposal: Proposal) -> StepState:
    assignment = state.assignment().assignment
    tally = total(state.tallies)
    measured = checkpoint_metrics(tally)
    measured[GRADIENT_NORM[0]] = proposal.gradient_norm
    measured[LEARNING_RATE[0]] = request.learning_rate
    # The client also knows the rewards of rollouts that it did not send, so its figures win.
    rewards = {n: v for n, v in request.metrics.items() if n.startswith(REWARDS)}
    return StepState(
        model=state.model,
        run=assignment.run,
        step=state.position.step + 1,
        run_step=state.run_step() + 1,
        branch=assignment.branch,
        term=assignment.term,
        parent=state.position.digest,
        parent_name=state.position.name,
        learning_rate=request.learning_rate,
        group_size=tally.group_size,
        loss=tally.loss_name,
        metrics=request.metrics | measured | rewards,
        measured=figures(tally, request.measured, state.model),
        cursor=request.cursor,
        taskset=request.taskset,
        optimizer_steps=proposal.moments.steps,
        loaded=state.loaded.digest if state.loaded else "",
    )
