"""From the log and the volume back to the state that was last acknowledged."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from espalier.trainer.engine import steps
from espalier.trainer.engine.checkpoint_files import Position
from espalier.trainer.engine.commands import gradient_command, logged_request
from espalier.trainer.memory.planner import read_cuts
from espalier.trainer.problems import CommandError
from espalier.trainer.volume.checkpoint_store import Stored
from espalier.trainer.volume.command_log import Assigned, Record

if TYPE_CHECKING:
    from espalier.trainer.engine.engine import Engine

logger = logging.getLogger(__name__)


def restore(target: Engine) -> None:
    """Loads the last commit, adopts one that was written but not logged, replays what is pending.

    Commands that were begun and never finished were never acknowledged and had no effect; they
    are forgotten, and a resent one runs anew.
    """
    target.commits = [
        c if target.store.has("checkpoint", c.digest) else c.model_copy(update={"stored": False})
        for c in target.log.commits()
    ]
    target.assigned = target.log.assigned()
    if target.assigned is not None:
        _adopt(target, target.assigned)
        position = _position(target, target.assigned)
        digest = position.digest
        content = target.read(digest) if digest else None
        committed = len(target.commits) > target.assigned.since
        target.stand_on(
            position, content, "Keep" if committed else target.assigned.assignment.optimizer_state
        )
        _replay(target)
    for record in target.log.unfinished():
        target.log.abandon(record)


def _position(target: Engine, assigned: Assigned) -> Position:
    """The last commit under the assignment's term, else the assignment's base."""
    if len(target.commits) > assigned.since:
        last = target.commits[-1]
        return Position(last.digest, last.name, last.step)
    assignment = assigned.assignment
    return Position(assignment.base, assignment.base_name, assignment.base_step)


def _adopt(target: Engine, assigned: Assigned) -> None:
    for record in target.log.unfinished():
        stored = _written_by(target, assigned, record) if record.kind == "optim-step" else None
        if stored is None:
            continue
        state = target.read(stored.digest).state
        try:
            steps.record_commit(target, record, stored, state)
            logger.info("adopted %s, which was written but not logged", state.name)
        except CommandError as error:
            # The step was never acknowledged, so undoing it is as right, and frees space.
            target.store.discard(stored)
            target.problem = error.problem


def _written_by(target: Engine, assigned: Assigned, record: Record) -> Stored | None:
    parent = _position(target, assigned).digest
    for stored in target.store.checkpoints(target.model):
        manifest = stored.manifest
        key = (manifest["session"], manifest["seq"])
        if (
            key == (record.key.session, record.key.seq)
            and manifest["term"] == assigned.assignment.term
            and manifest["parent"] == parent
        ):
            return stored
    return None


def _replay(target: Engine) -> None:
    for record in target.log.pending():
        request, cuts = logged_request(target.log, record), read_cuts(record.cuts)
        work = gradient_command(target.compute, target.log, request, cuts)
        target.tallies.append(work.apply().tally)
