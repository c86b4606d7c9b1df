"""Finds resends among commands without a key, from which answers were delivered.

HUD's client sends no key and never resends by itself; a loop around it does. The gateway names the
client (who it is authenticated as) and says when it has read an answer and closed. A command
equal to the client's latest one, whose answer was never delivered, is that command again and gets
its stored answer; after a delivered answer an equal command is a new one. Any other command shows
that the client has finished with the one before it. The log keeps which answers were delivered, so
restarts of the gateway and of the trainer do not lose it.

An optimizer step whose answer was lost makes the whole step resent: a loop calls it again from its
forward_backward on, and none of it may be applied twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from espalier.trainer.engine.commands import Answer, Command, Sent
from espalier.trainer.engine.engine import Admit, Engine
from espalier.trainer.engine.forwards import FORWARDS_KEPT
from espalier.trainer.volume.command_log import CommandLog, Key, Kind, Record

STEP: Kind = "optim-step"


@dataclass(frozen=True)
class Unkeyed:
    """A command without a key, from a client that the gateway names."""

    client: str
    sent: Sent


def resent(
    records: Sequence[Record],
    delivered: int,
    kind: Kind,
    body: bytes,
    in_force: Callable[[Record], bool],
) -> Record | None:
    """The earlier command that this one repeats; None when it is new.

    Args:
        records: the client's finished commands since its last step but one, oldest first.
        delivered: the highest number whose answer was delivered; -1 when none was.
        kind: the command's kind.
        body: the command's body, as it is logged.
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


def execute(
    engine: Engine, command: Unkeyed, *, waited: bool, admit: Admit = nullcontext
) -> tuple[Key, Answer] | None:
    """Applies a command, or answers it again; call it on the engine's thread.

    Args:
        engine: the engine that applies it.
        command: the command.
        waited: whether the time for reports of earlier deliveries has passed.
        admit: as ``Engine.execute`` takes it.

    Returns:
        The command's key and answer; None when it looks like a resend and a report of delivery may
        yet come.
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
    answer = engine.execute(Command(key, sent), admit)
    return key, answer


def _in_force(log: CommandLog, record: Record) -> bool:
    """Whether a command's gradients or forward are still there: a rollback drops them."""
    if record.kind in ("forward-backward", "backward"):
        return any(record.number == pending.number for pending in log.pending())
    if record.kind == "forward":
        return any(record.number == forward.number for forward in log.forwards(FORWARDS_KEPT))
    return True
