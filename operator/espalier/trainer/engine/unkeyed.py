"""Commands of clients that send no key: which are resends, told from what was delivered.

HUD's client sends no key and never resends by itself; a loop around it does. The gateway names the
client (who it is authenticated as) and says when an answer was written to it completely. A command
equal to the client's latest one, whose answer was never delivered, is that command again and gets
its stored answer; after a delivered answer an equal command is a new one. Any other command says
that the client is done with the one before it. What was delivered is kept in the log, so that
neither a restart of the gateway nor one of the trainer forgets it.

An optimizer step whose answer was lost makes the whole step resent: a loop calls it again from its
forward_backward on, and none of it may be applied twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from espalier.trainer.engine.commands import FORWARDS_KEPT, Answer, Command, Sent
from espalier.trainer.engine.engine import Engine
from espalier.trainer.volume.command_log import CommandLog, Key, Kind, Record

STEP: Kind = "optim-step"


@dataclass(frozen=True)
class Unkeyed:
    """A command without a key, of a client by its name at the gateway."""

    client: str
    sent: Sent


def resent(
    records: Sequence[Record],
    delivered: int,
    kind: Kind,
    body: bytes,
    in_force: Callable[[Record], bool],
) -> Record | None:
    """The earlier command that this one is again; None when it is new.

    Args:
        records: the client's finished commands since its last step but one, oldest first.
        delivered: the highest number whose answer was delivered; -1 when none was.
        kind: of the command.
        body: of the command, as it is logged.
        in_force: whether a command's effect is still there (its gradients, its forward).
    """
    if not records or records[-1].key.seq <= delivered:
        return None
    last = records[-1]
    if last.is_for(kind, body) and in_force(last):
        return last
    if last.kind == STEP and last.status == 200:
        steps = [i for i, record in enumerate(records[:-1]) if record.kind == STEP]
        since = records[steps[-1] + 1 :] if steps else records
        return next((record for record in since if record.is_for(kind, body)), None)
    return None


def execute(engine: Engine, command: Unkeyed, *, waited: bool) -> tuple[Key, Answer] | None:
    """Applies a command, or answers it again; call it on the engine's thread.

    Args:
        engine: what applies it.
        command: the command.
        waited: whether word of the delivery of an earlier answer can no longer come.

    Returns:
        The command's key and answer; None when it looks like a resend and word may yet come.
    """
    sent = command.sent
    records = engine.state.log.since_last_step_but_one(command.client)
    again = resent(
        records,
        engine.state.log.delivered(command.client),
        sent.kind,
        sent.body,
        lambda record: _in_force(engine.state.log, record),
    )
    if again is not None and not waited:
        return None
    latest = engine.state.log.latest(command.client)
    key = again.key if again is not None else Key(command.client, (latest or 0) + 1)
    answer = engine.execute(Command(key, sent))
    return key, answer


def _in_force(log: CommandLog, record: Record) -> bool:
    """A rollback drops gradients and forwards: then the command must be applied again."""
    if record.kind in ("forward-backward", "backward"):
        return any(record.number == pending.number for pending in log.pending())
    if record.kind == "forward":
        return any(record.number == forward.number for forward in log.forwards(FORWARDS_KEPT))
    return True
