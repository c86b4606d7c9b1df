"""An optimizer step: computed beside the old weights, committed, and only then installed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from espalier.api.metric_names import of_step
from espalier.api.wire import OptimStepRequest, OptimStepResult, Problem
from espalier.trainer.batch.step_metrics import total
from espalier.trainer.compute.adamw import Proposal
from espalier.trainer.engine import checkpoint_files, kept_rollouts
from espalier.trainer.engine.checkpoint_files import Position, StepState
from espalier.trainer.engine.commands import Answer, Command
from espalier.trainer.engine.measurements import figures
from espalier.trainer.problems import CommandError
from espalier.trainer.volume.checkpoint_store import Stored
from espalier.trainer.volume.command_log import Record

if TYPE_CHECKING:
    from espalier.trainer.engine.engine import Engine

REWARDS = of_step("reward/")


def optim_step(engine: Engine, command: Command, request: OptimStepRequest) -> Answer:
    """Steps, commits and installs; what fails leaves weights and gradients as they were."""
    if not engine.tallies:
        raise CommandError(
            409,
            "NoGradients",
            "no gradients were accumulated since the last optimizer step",
            "call forward_backward first (a zero-grad or a new term drops gradients)",
        )
    accumulated = total(engine.tallies)
    if accumulated.still == accumulated.tokens:
        raise CommandError(
            409,
            "NoGradients",
            f"the gradient of all {accumulated.tokens} accumulated tokens is zero: they have no "
            "advantage, as when all rewards of a group are equal, or the loss clipped them; "
            "nothing was stepped",
            "add a batch in which rewards differ inside a group, or leave this step out; zero-grad "
            "drops what is accumulated",
        )
    record = engine.begin(command)
    try:
        proposal = engine.compute.propose(request)
        if not proposal.finite:
            return _refuse(engine, record, proposal)
        state = _next_state(engine, request, proposal)
        answer = _commit(engine, record, request, proposal, state)
    except CommandError:
        # Nothing was touched: the proposal is dropped and the gradients stay.
        engine.log.abandon(record)
        raise
    except Exception:
        engine.undo(record)
        raise
    engine.compute.install(proposal)
    engine.position = Position(answer.digest, state.name, state.step)
    engine.drop_gradients()
    engine.problem = None
    return answer


def record_commit(engine: Engine, record: Record, stored: Stored, state: StepState) -> Answer:
    """Logs a checkpoint that is on the volume as the effect of an optimizer step."""
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    commit = checkpoint_files.commit_of(stored, state, len(engine.commits) + 1, now)
    result = OptimStepResult(
        step=state.step,
        checkpoint_id=state.name,
        sampler_path=str(stored.path),
        state_path=str(stored.path),
        model=engine.model,
    )
    engine.log.commit(record, result.model_dump_json(), commit, json.dumps(state.cursor))
    engine.commits = [*engine.commits, commit]
    return Answer(200, result.model_dump_json(), stored.digest)


def _refuse(engine: Engine, record: Record, proposal: Proposal) -> Answer:
    problem = Problem(
        reason="NonFiniteGradient",
        detail=f"the step is not finite (gradient norm {proposal.gradient_norm}); nothing was "
        "stepped and the gradients were dropped",
        remedy="lower the learning rate, set optimizer.gradientClipNorm, or check the rewards",
    )
    engine.log.settle(record, 409, problem.model_dump_json())
    engine.drop_gradients()
    engine.problem = problem
    return Answer(409, problem.model_dump_json())


def _commit(
    engine: Engine,
    record: Record,
    request: OptimStepRequest,
    proposal: Proposal,
    state: StepState,
) -> Answer:
    rollouts = request.rollouts or kept_rollouts.records(engine)
    stored, created = checkpoint_files.write(
        engine.store,
        engine.compute,
        proposal,
        state,
        base=engine.base,
        key=record.key,
        rollouts=rollouts,
    )
    try:
        answer = record_commit(engine, record, stored, state)
    except CommandError:
        if created:
            engine.store.discard(stored)
        raise
    kept_rollouts.mark(engine, rollouts)
    return answer


def _next_state(engine: Engine, request: OptimStepRequest, proposal: Proposal) -> StepState:
    assignment = engine.assignment().assignment
    tally = total(engine.tallies)
    measured = tally.checkpoint_metrics()
    measured["optimizer/gradient_norm"] = proposal.gradient_norm
    # The client also knows the rewards of what it did not send, so there its figures win.
    rewards = {n: v for n, v in request.metrics.items() if n.startswith(REWARDS)}
    return StepState(
        model=engine.model,
        run=assignment.run,
        step=engine.position.step + 1,
        run_step=engine.run_step() + 1,
        branch=assignment.branch,
        term=assignment.term,
        parent=engine.position.digest,
        parent_name=engine.position.name,
        learning_rate=request.learning_rate,
        group_size=tally.group_size,
        loss=tally.loss_name,
        metrics=request.metrics | measured | rewards,
        measured=figures(tally, request.measured, engine.model),
        cursor=request.cursor,
        optimizer_steps=proposal.moments.steps,
    )
