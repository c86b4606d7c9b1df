"""What each kind of command does that a Tinker client queued."""

from __future__ import annotations

from pydantic import TypeAdapter

from espalier.api.wire.declared import Declared
from espalier.api.wire.problem import Problem
from espalier.api.wire.step import OptimStepRequest
from espalier.tinker.bodies import LoadWeights, OptimStep, Save, Standing
from espalier.trainer.batch.losses import LossSpec
from espalier.trainer.engine import client_batches, declared, recovery, steps
from espalier.trainer.engine.engine import check_aggregation, stale_term
from espalier.trainer.engine.explicit_command import ExplicitCommand, explicit_command
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.memory.planner import cuts_json
from espalier.trainer.problems import CommandError
from espalier.trainer.volume import tensor_files
from espalier.trainer.volume.command_log import Loaded
from espalier.trainer.volume.inbox import Queued
from espalier.trainer.volume.log_records import TINKER_GRADIENTS

SAVE: TypeAdapter[Save] = TypeAdapter(Save)


def apply(state: TrainingState, queued: Queued) -> None:
    """Applies the command and logs its answer.

    Raises:
        CommandError: it was not applied; its status tells whether it may be later.
    """
    term = state.trained().assignment.term
    if (failed := client_batches.failed_part(state, queued)) is not None:
        client_batches.end(state, queued, 409, client_batches.broken_by(failed))
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
        client_batches.take_over(state, queued)
        _load(state, queued, LoadWeights.model_validate_json(body))


def _step(state: TrainingState, queued: Queued, request: OptimStepRequest) -> None:
    _check_declared(state, queued, request)
    client_batches.take_over(state, queued)
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
    client_batches.end(state, queued, 409, problem)


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
        client_batches.take_over(state, queued)
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
