"""Whose batch waits for its optimizer step, and how one ends that cannot be stepped.

A batch is what a client's gradient commands have added up since its last step.
"""

from __future__ import annotations

from espalier.api.wire.problem import Problem
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.problems import CommandError
from espalier.trainer.volume.command_log import CommandLog, Record
from espalier.trainer.volume.inbox import Queued
from espalier.trainer.volume.log_records import TINKER_GRADIENTS


def failed_part(state: TrainingState, queued: Queued) -> Record | None:
    """What failed of the batch that the command would step on."""
    return state.log.failed_since_step(queued.key) if queued.kind == "optim-step" else None


def broken_by(failed: Record) -> Problem:
    """What a step is answered a part of whose batch failed."""
    cause = Problem.model_validate_json(failed.answer)
    return Problem(
        reason="BatchBroken",
        detail=f"seq_id {failed.key.seq} of this step failed ({cause.detail}), so nothing was "
        "stepped and the gradients of the other parts were dropped",
        remedy=cause.remedy or "send the whole step again, forward_backward first",
    )


def end(state: TrainingState, queued: Queued, status: int, problem: Problem) -> None:
    """Fails a step and drops what it would have stepped on, but nothing of another client."""
    if _others(state, queued):
        state.log.refuse(queued, status, problem.model_dump_json())
        return
    state.log.settle(state.begin(queued), status, problem.model_dump_json())
    state.drop_gradients()


def take_over(state: TrainingState, queued: Queued) -> None:
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


def _others(state: TrainingState, queued: Queued) -> list[Record]:
    """Gradients of other clients that wait for a step."""
    pending = state.log.pending() if state.tallies or state.lost else []
    return [record for record in pending if record.key.session != queued.key.session]


def _beside(record: Record) -> CommandError:
    return CommandError(
        409,
        "AnotherClientTrains",
        f"client {record.key.session} trains this model, and its batch waits for a step; nothing "
        "was applied",
        "stop one of the two clients (an optim_step or zero_grad of that one ends its batch), or "
        "fork the model from a saved state",
    )
