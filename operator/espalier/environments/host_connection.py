"""One host as the runner hears it: its lines as the protocol says them, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from espalier.environments.errors import RolloutFailedError, invalid

VERSION = 1
# What all tasks of a taskset may take here.
MOST_TASK_BYTES = 256 << 20
# Lines that belong to no rollout that is played: of one that was cancelled a few are honest.
MOST_STRAY = 64
MOST_DETAIL_CHARACTERS = 1000

# Answers one request of a rollout for a turn.
Turns = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class LieError(Exception):
    """The host said something that is not of the protocol."""


@dataclass
class Playing:
    """A rollout that the host plays: where its end goes, and who answers its turns."""

    turns: Turns
    end: asyncio.Future[dict[str, Any]]
    asking: asyncio.Task[None] | None = None


@dataclass
class HostConnection:
    """A host, from its hello until it is lost.

    ``source`` is the field of the run that names what is played, and ``remedy`` what to do about
    functions that cannot be used; for messages.
    """

    source: str
    remedy: str
    writer: asyncio.StreamWriter
    playing: dict[int, Playing] = field(default_factory=dict)
    cancelled: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    tasks: list[Any] = field(default_factory=list)
    task_bytes: int = 0
    stray: int = 0
    opened: asyncio.Future[list[Any]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    lost: str = ""

    def say(self, message: dict[str, Any]) -> None:
        """Sends a line."""
        self.writer.write(json.dumps(message).encode() + b"\n")

    def lose(self, why: str) -> None:
        """Everything that waits for the host fails; once."""
        self.lost = why
        self.writer.close()
        error = RolloutFailedError("Died", f"its host was lost: {why}")
        if not self.opened.done():
            self.opened.set_exception(error)
        for playing in self.playing.values():
            if not playing.end.done():
                playing.end.set_exception(error)

    def greet(self, line: bytes) -> None:
        """Takes the first line; LieError for another greeting than this version's."""
        if _object(line).get("hello") != VERSION:
            raise LieError("it did not greet as this version does")

    def take(self, line: bytes) -> None:
        """Takes another line; LieError for one that is not of the protocol."""
        message = _object(line)
        if "task" in message:
            self.task_bytes += len(line)
            if self.opened.done() or self.task_bytes > MOST_TASK_BYTES:
                raise LieError("it tells tasks without end")
            self.tasks.append(message["task"])
        elif "opened" in message or "refused" in message:
            self._opened(message)
        elif (done := message.get("cancelled")) is not None:
            waiting = self.cancelled.pop(done, None) if isinstance(done, int) else None
            if waiting is None:
                raise LieError("it cancelled what nobody asked it to")
            waiting.set_result(None)
        else:
            self._of_rollout(message)

    def _opened(self, message: dict[str, Any]) -> None:
        if self.opened.done():
            raise LieError("it opened twice")
        if (refused := message.get("refused")) is not None:
            said = str(refused)[:MOST_DETAIL_CHARACTERS]
            self.opened.set_exception(invalid(f"{self.source}: {said}", self.remedy))
        else:
            self.opened.set_result(self.tasks)

    def _of_rollout(self, message: dict[str, Any]) -> None:
        number = message.get("rollout")
        playing = self.playing.get(number) if isinstance(number, int) else None
        if playing is None or playing.end.done():
            self.stray += 1
            if self.stray > MOST_STRAY:
                raise LieError("it speaks of rollouts that are not played")
        elif "turn" in message:
            if playing.asking is not None and not playing.asking.done():
                raise LieError("a rollout asked for two turns at once")
            playing.asking = asyncio.ensure_future(self._answer(playing, message))
        elif "ended" in message or "failed" in message:
            playing.end.set_result(message)
        else:
            raise LieError("a line of a rollout says nothing")

    async def _answer(self, playing: Playing, message: dict[str, Any]) -> None:
        """One turn. What the gateway refuses ends the rollout here, not in the user's code."""
        try:
            answer = await playing.turns(message)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not playing.end.done():
                playing.end.set_exception(error)
            return
        if not self.lost:
            self.say({"kind": "turn", "rollout": message["rollout"], **answer})
            with contextlib.suppress(ConnectionError):
                await self.writer.drain()


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise LieError("a line is no JSON") from None
    if not isinstance(found, dict):
        raise LieError("a line is no JSON object")
    return found
