"""Returns from the log and the volume to the state that was last acknowledged."""

from __future__ import annotations

import json
import logging
import os

from espalier.api.wire.problem import Problem
from espalier.trainer.engine.checkpoint_files import UNREADABLE, Position
from espalier.trainer.engine.explicit_command import ExplicitCommand, explicit_command
from espalier.trainer.engine.gradient_commands import (
    GradientCommand,
    gradient_command,
    logged_request,
)
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.memory.planner import read_cuts
from espalier.trainer.problems import CommandError
from espalier.trainer.volume.checkpoint_store import Stored
from espalier.trainer.volume.command_log import Assigned, Record
from espalier.trainer.volume.log_records import TINKER_GRADIENTS

logger = logging.getLogger(__name__)


def restore(state: TrainingState) -> None:
    """Loads the last commit, adopts one that was written but not logged, replays pending gradients.

    Commands that were begun and never finished were never acknowledged and had no effect: they
    are forgotten, and run as new ones when they are sent again.

    Where the volume lacks what training stands on, the state is held: the process must live to be
    assigned another start.
    """
    state.read_log()
    if state.assigned is not None:
        _adopt(state, state.assigned)
        position = _position(state, state.assigned)
        try:
            _stand(state, state.assigned, position)
        except CommandError as error:
            if error.problem.reason != UNREADABLE:
                raise
            logger.error("training is held: %s", error.problem.text)
            state.hold(error.problem, position)
        else:
            _restore_unstepped(state)
    for record in state.log.unfinished():
        state.log.abandon(record)


def _stand(state: TrainingState, assigned: Assigned, position: Position) -> None:
    """Loads the position."""
    content = state.read(position.digest) if position.digest else None
    committed = len(state.commits) > assigned.since
    state.stand_on(position, content, "Keep" if committed else assigned.assignment.optimizer_state)


def undo(state: TrainingState, record: Record) -> None:
    """Restores what the log has after a command failed half-way."""
    try:
        state.log.abandon(record)
        restore(state)
    except Exception:
        logger.exception("the state cannot be restored in place; starting over from the log")
        os._exit(1)


def _position(state: TrainingState, assigned: Assigned) -> Position:
    """The last commit under the assignment's term, else the checkpoint that the run starts from."""
    if len(state.commits) > assigned.since:
        last = state.commits[-1]
        return Position(last.digest, last.name, last.step)
    assignment = assigned.assignment
    return Position(assignment.base, assignment.base_name, assignment.base_step)


def _adopt(state: TrainingState, assigned: Assigned) -> None:
    """Logs the commit of a step that died between writing its checkpoint and logging it."""
    for record in state.log.unfinished():
        stored = _written_by(state, assigned, record) if record.kind == "optim-step" else None
        if stored is None:
            continue
        try:
            step = state.read(stored.digest).state
            state.record_commit(record, stored, step)
            logger.info("adopted %s, which was written but not logged", step.name)
        except CommandError as error:
            # The step was never acknowledged, so it may as well be undone, which frees space.
            state.store.discard(stored)
            if error.problem.reason != UNREADABLE:
                state.set_problem(error.problem)


def _written_by(state: TrainingState, assigned: Assigned, record: Record) -> Stored | None:
    """The checkpoint that an unfinished optimizer step wrote, if it came that far."""
    parent = _position(state, assigned).digest
    for stored in state.store.checkpoints(state.model):
        manifest = stored.manifest
        key = (manifest.get("session"), manifest.get("seq"))
        if (
            key == (record.key.session, record.key.seq)
            and manifest.get("term") == assigned.assignment.term
            and manifest.get("parent") == parent
        ):
            return stored
    return None


def _restore_unstepped(state: TrainingState) -> None:
    """What was loaded and accumulated since the last step; what is lost is told, and refused.

    It must not keep the trainer from starting: a rollback, or other tasks, may need none of it.
    """
    try:
        if (loaded := state.log.loaded()) is not None:
            state.take_weights(state.read(loaded.digest), loaded)
    except CommandError as error:
        state.lose(_lost_weights(error), weights=True)
        return
    try:
        _replay(state)
    except CommandError as error:
        if error.status >= 500:
            raise
        state.drop_gradients()
        state.lose(_lost_gradients(error), weights=False)


def _replay(state: TrainingState) -> None:
    """Accumulates pending gradients again, batches cut as they were the first time."""
    for record in state.log.pending():
        state.add_tally(_logged(state, record).run(state.compute).tally)


def _logged(state: TrainingState, record: Record) -> GradientCommand | ExplicitCommand:
    cuts = read_cuts(record.cuts)
    if record.kind == TINKER_GRADIENTS:
        return explicit_command(state.compute, state.log.body(record), cuts)
    request = logged_request(state.log, record)
    kept = state.log.referred(record)
    referred = json.loads(kept) if kept else None
    find = state.references.find
    return gradient_command(state.compute, state.log, request, cuts, referred, find=find)


def _lost_gradients(error: CommandError) -> Problem:
    return Problem(
        reason="GradientsLost",
        detail="the gradients that wait for an optimizer step could not be restored after a "
        f"restart: {error.problem.detail}; nothing was stepped",
        remedy="call zero_grad, or with a client that has none (HUD's, Tinker's) optim_step, which "
        "fails once and drops the rest; then begin the step again with forward_backward. A run "
        f"with driver Runner does so by itself; {error.problem.remedy}",
    )


def _lost_weights(error: CommandError) -> Problem:
    return Problem(
        reason="WeightsLost",
        detail="the checkpoint whose weights were loaded last cannot be loaded again after a "
        f"restart: {error.problem.detail}; nothing was stepped",
        remedy="load weights that are there, or move the model's head to a checkpoint",
    )
