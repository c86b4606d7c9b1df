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

from espalier.api.wire.problem import Problem
from espalier.core.model.reported import VOLUME_REASONS
from espalier.trainer.engine import client_batches, queued_commands
from espalier.trainer.engine.engine import Engine
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.problems import CommandError
from espalier.trainer.prometheus import REFUSALS
from espalier.trainer.volume.command_log import CommandLog, Key
from espalier.trainer.volume.inbox import Queued

logger = logging.getLogger(__name__)

# A command that so many trainers died of is not tried again.
MOST_CRASHES = 6


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
        queued_commands.apply(state, queued)
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
    failed = client_batches.failed_part(state, queued)
    if failed is not None and status < 500:
        status, problem = 409, client_batches.broken_by(failed)
    if queued.kind == "optim-step":
        client_batches.end(state, queued, status, problem)
    else:
        state.log.refuse(queued, status, problem.model_dump_json())


def _deadly(queued: Queued) -> Problem:
    return Problem(
        reason="TrainerDied",
        detail=f"the trainer died {queued.crashes} times while it applied {queued.kind} "
        f"{queued.key.seq}; nothing was applied",
        remedy="see why its pod was restarted (kubectl describe pod); smaller batches need less "
        "memory",
    )
