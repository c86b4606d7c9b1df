"""The queue of Tinker's clients: accepted commands, applied in the order of their numbers.

A turn applies one command, or fails it, and logs the answer; a failed one uses up its number too.
Gradients of two clients never add up: the later one drops what the one before it left behind. But
what HUD's clients and ours have added up waits for their step, and is theirs to drop.
A fault that passes (no assignment yet, a full volume) leaves the command waiting. So does a start,
until an assignment has come: the volume may be of an earlier time, and what its inbox holds would
be trained under a term that is long over. An optimizer step ends its batch, also one that fails:
its client sends the whole step again. So does one after a gradient command that failed, which
would step on a part of a batch.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from pydantic import TypeAdapter

from espalier.api.wire.declared import Declared
from espalier.api.wire.problem import Problem
from espalier.api.wire.step import OptimStepRequest
from espalier.core.model.reported import VOLUME_REASONS
from espalier.tinker.bodies import (
    LoadWeights,
    OptimStep,
    Save,
    Standing,
)
from espalier.trainer.batch.losses import LossSpec
from espalier.trainer.engine import declared, recovery, steps
from espalier.trainer.engine.engine import Engine, check_aggregation, stale_term
from espalier.trainer.engine.explicit_command import ExplicitCommand, explicit_command
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.memory.planner import cuts_json
from espalier.trainer.problems import CommandError
from espalier.trainer.prometheus import REFUSALS
from espalier.trainer.volume import tensor_files
from espalier.trainer.volume.command_log import CommandLog, Key, Loaded, Record
from espalier.trainer.volume.inbox import Queued
from espalier.trainer.volume.log_records import TINKER_GRADIENTS

logger = logging.getLogger(__name__)

# A command that so many trainers died of is not tried again.
MOST_CRASHES = 6
SAVE: TypeAdapter[Save] = TypeAdapter(Save)


@dataclass(frozen=True)
class Turn:
    """What a turn did: the command that was answered, and whether it was applied; or what the next
    one waits for.
    """

    answered: Key | None = None
    applied: bool = False
    held_up: Problem | None = None


def take_turn(engine: Engine) -> Turn:
    """Applies the next command whose turn it is; call it on the engine's thread."""
    state = engine.state
    queued = state.log.inbox.next()
    if queued is None:
        return Turn()
    try:
        state.refuse_unconfirmed()
        _answer(state, queued)
        if state.problem is not None and state.problem.reason in VOLUME_REASONS:
            state.set_problem(None)
        return Turn(queued.key, applied=bool(applied(state.log, queued.key)))
    except CommandError as error:
        if error.problem.reason in VOLUME_REASONS:
            state.set_problem(error.problem)
        return Turn(held_up=error.problem)
    finally:
        engine.tell()


def applied(log: CommandLog, key: Key) -> bool | None:
    """Whether a command was applied; None while that is open."""
    record = log.find(key)
    return None if record is None or record.status is None else record.status == 200


def give_up(engine: Engine, missing: Key, seconds: float) -> list[Key]:
    """Fails what waits behind a number that has not come; the keys that were answered.

    Call it on the engine's thread. Whether the missing command was a gradient is not known, so the
    model's next optimizer step fails too.
    """
    state = engine.state
    problem = Problem(
        reason="NumberMissing",
        detail=f"seq_id {missing.seq} of {missing.session} has not arrived within {seconds:g} s, "
        "and commands are applied in the order of their numbers",
        remedy="begin the step again with forward_backward; a command that was refused, or that "
        "its client stopped sending, leaves such a gap",
    )
    try:
        state.log.give_up(missing, 504, problem.model_dump_json())
        answered = [missing]
        for queued in state.log.inbox.waiting(missing.session):
            _fail(state, queued, 504, problem)
            answered.append(queued.key)
        return answered
    finally:
        engine.tell()


def _answer(state: TrainingState, queued: Queued) -> None:
    """Logs the command's answer; raises only what holds it up."""
    try:
        if queued.problem:
            _fail(state, queued, 422, Problem.model_validate_json(queued.problem))
            return
        if queued.crashes >= MOST_CRASHES:
            _fail(state, queued, 500, _deadly(queued))
            return
        _apply(state, queued)
    except CommandError as error:
        if error.status == 503 or error.problem.reason in VOLUME_REASONS:
            raise
        _fail(state, queued, error.status, error.problem)
    except Exception as error:
        logger.exception("%s of %s failed", queued.kind, queued.key)
        detail = f"{type(error).__name__}: {error}; nothing was applied"
        problem = Problem(reason="Internal", detail=detail, remedy="see the trainer's log")
        _fail(state, queued, 500, problem)


def _fail(state: TrainingState, queued: Queued, status: int, problem: Problem) -> None:
    """Logs that a command failed; a step that fails drops its batch."""
    REFUSALS.labels(problem.reason).inc()
    broken = _broken(state, queued)
    if broken is not None and status < 500:
        status, problem = 409, _batch_broken(broken)
    if queued.kind == "optim-step":
        _end_batch(state, queued, status, problem)
    else:
        state.log.refuse(queued, status, problem.model_dump_json())


def _broken(state: TrainingState, queued: Queued) -> Record | None:
    """What failed of the batch that the command would step on."""
    return state.log.failed_since_step(queued.key) if queued.kind == "optim-step" else None


def _batch_broken(broken: Record) -> Problem:
    cause = Problem.model_validate_json(broken.answer)
    return Problem(
        reason="BatchBroken",
        detail=f"seq_id {broken.key.seq} of this step failed ({cause.detail}), so nothing was "
        "stepped and the gradients of the other parts were dropped",
        remedy=cause.remedy or "send the whole step again, forward_backward first",
    )


def _end_batch(state: TrainingState, queued: Queued, status: int, problem: Problem) -> None:
    """Fails a step and drops what it would have stepped on, but nothing of another client."""
    if _others(state, queued):
        state.log.refuse(queued, status, problem.model_dump_json())
        return
    state.log.settle(state.begin(queued), status, problem.model_dump_json())
    state.drop_gradients()


def _deadly(queued: Queued) -> Problem:
    return Problem(
        reason="TrainerDied",
        detail=f"the trainer died {queued.crashes} times while it applied {queued.kind} "
        f"{queued.key.seq}; nothing was applied",
        remedy="see why its pod was restarted (kubectl describe pod); smaller batches need less "
        "memory",
    )


def _apply(state: TrainingState, queued: Queued) -> None:
    term = state.trained().assignment.term
    if (broken := _broken(state, queued)) is not None:
        _end_batch(state, queued, 409, _batch_broken(broken))
        return
    if queued.term is not None and queued.term != term:
        raise stale_term(queued.term, term)
    body = state.log.inbox.body(queued)
    if queued.kind == TINKER_GRADIENTS:
        _gradients(state, queued, body)
    elif queued.kind == "optim-step":
        _step(state, queued, OptimStep.model_validate_json(body).request())
    elif queued.kind == "save-weights":
        state.refuse_lost()
        _save(state, queued, SAVE.validate_json(body))
    else:
        _take_over(state, queued)
        _load(state, queued, LoadWeights.model_validate_json(body))


def _step(state: TrainingState, queued: Queued, request: OptimStepRequest) -> None:
    _check_declared(state, queued, request)
    _take_over(state, queued)
    gone = state.log.dropped_since_step(queued.key) if state.tallies else None
    if gone is None:
        steps.optim_step(state, queued, request, without_gradient=True)
        return
    problem = Problem(
        reason="BatchBroken",
        detail=f"the gradients of seq_id {gone.key.seq} of this step were dropped when another "
        "client trained the model, or its head moved, so nothing was stepped and those of the "
        "other parts were dropped",
        remedy="send the whole step again, forward_backward first",
    )
    _end_batch(state, queued, 409, problem)


def _others(state: TrainingState, queued: Queued) -> list[Record]:
    """Gradients of other clients that wait for a step."""
    pending = state.log.pending() if state.tallies or state.lost else []
    return [record for record in pending if record.key.session != queued.key.session]


def _take_over(state: TrainingState, queued: Queued) -> None:
    """Drops the batch of a client that came before and left it; refuses while another's is open."""
    others = _others(state, queued)
    if not others:
        return
    # Whose batch came by another way, or after this command, is at work.
    for record in others:
        if not record.body or record.body > queued.file:
            raise _beside(record)
    state.drop_batch()


def refuse_beside_others(log: CommandLog) -> None:
    """409 while a batch of a client that is not Tinker's waits for its step."""
    for record in log.pending():
        if record.kind != TINKER_GRADIENTS:
            raise _beside(record)


def _beside(record: Record) -> CommandError:
    return CommandError(
        409,
        "AnotherClientTrains",
        f"client {record.key.session} trains this model, and its batch waits for a step; nothing "
        "was applied",
        "stop one of the two clients (an optim_step or zero_grad of that one ends its batch), or "
        "fork the model from a saved state",
    )


def _check_declared(
    state: TrainingState, queued: Queued, request: OptimStepRequest | LossSpec
) -> None:
    if queued.declared:
        given = Declared.model_validate_json(queued.declared)
        declared.check(given, request, step=state.run_step() + 1)


def _gradients(state: TrainingState, queued: Queued, body: bytes) -> None:
    command = explicit_command(state.compute, body)
    _check_declared(state, queued, command.spec)
    if not command.forward_only:
        _take_over(state, queued)
    state.refuse_lost()
    if command.forward_only:
        _forward(state, queued, command)
        return
    check_aggregation(state, command.aggregation)
    record = state.begin(queued)
    try:
        added = command.run(state.compute)
        told = command.told(added)
        state.log.accumulate(record, told.answer, cuts_json(added.cuts), told.result)
    except Exception:
        recovery.undo(state, record)
        raise
    state.add_tally(added.tally)


def _forward(state: TrainingState, queued: Queued, command: ExplicitCommand) -> None:
    record = state.begin(queued)
    try:
        told = command.forward(state.compute)
        state.log.finish(record, 200, told.answer, told.result)
    except Exception:
        state.log.abandon(record)
        raise


def _save(state: TrainingState, queued: Queued, request: Save) -> None:
    record = state.begin(queued)
    state.log.finish(record, 200, _standing(state, request).model_dump_json())


def _load(state: TrainingState, queued: Queued, request: LoadWeights) -> None:
    """Takes a checkpoint's weights where training stands, if nothing was stepped there yet.

    Later it could not go on from there: a commit extends the checkpoint that training stands on.
    """
    assigned = state.assignment()
    content = state.read(request.digest)
    if request.digest != state.position.digest and len(state.commits) != assigned.since:
        raise CommandError(
            409,
            "LoadTooLate",
            f"training stands on {state.position.name}, and another checkpoint's weights can be "
            "loaded before a model's first optimizer step alone",
            "make a new client with create_training_client_from_state, or move the model's head",
        )
    state.compute.check(tensor_files.weights_of(content.stored.path).shapes)
    record, loaded = state.begin(queued), Loaded(request.digest, request.optimizer)
    answer = Standing(checkpoint=content.state.name, digest=request.digest, step=content.state.step)
    state.log.load(record, answer.model_dump_json(), loaded)
    try:
        state.take_weights(content, loaded)
    except Exception:
        # The load is logged, so it is done again from there.
        recovery.undo(state, record)


def _standing(state: TrainingState, request: Save) -> Standing:
    position = state.loaded or state.position
    return Standing(
        checkpoint=position.name, digest=position.digest, step=position.step, request=request
    )
