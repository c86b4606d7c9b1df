"""The runner's side of a host: listens on a Unix socket, and believes nothing of what it hears.

One connection at a time. A line is at most ``MOST_LINE_BYTES``; whatever is not of the protocol
ends the connection, with all rollouts that were being played. The host's process ends with its
connection, and whoever runs it starts another one, which is opened as the first one was.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.environments.errors import RolloutFailedError, UserError, invalid
from espalier.environments.host_connection import (
    MOST_DETAIL_CHARACTERS,
    HostConnection,
    LieError,
    Playing,
    Turns,
)

MOST_LINE_BYTES = 1 << 20
# Hosts in a row that are lost before any rollout came to its end: a kubelet, which waits longer
# before each start, needs three minutes for them.
MOST_LOST = 5


@dataclass(frozen=True)
class Patience:
    """Seconds: until a host has connected, has told all tasks, and has stopped a rollout."""

    connect: float = 300.0
    open: float = 600.0
    cancel: float = 10.0


class HostLink:
    """Listens for a host and plays rollouts on it.

    Args:
        path: of the socket.
        source: the field of the run that names what is played; for messages.
        remedy: for functions that cannot be used.
        opening: what a host is asked to open: functions, seed, size.
        patience: with it.
    """

    def __init__(
        self,
        path: Path,
        source: str,
        remedy: str,
        opening: dict[str, Any],
        patience: Patience | None = None,
    ) -> None:
        self._path = path
        self._source = source
        self._remedy = remedy
        self._opening = opening
        self._patience = patience or Patience()
        self._server: asyncio.Server | None = None
        self._host: HostConnection | None = None
        self._came = asyncio.Event()
        self._numbers = 0
        self._tasks: list[Any] = []
        # Why the last host was, and how many since a rollout came to its end.
        self._lost = ""
        self._lost_in_a_row = 0

    async def listen(self) -> None:
        """Begins to listen; whatever lay at the path is removed."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(
            self._serve, self._path, limit=MOST_LINE_BYTES
        )

    async def close(self) -> None:
        """Ends the connection, and with it the host's process."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        if self._host is not None:
            self._lose(self._host, "the runner ended")
        self._path.unlink(missing_ok=True)

    async def tasks(self) -> list[Any]:
        """The tasks that the host tells, as JSON gave them.

        Raises:
            UserError: ``TasksetInvalid``: the functions cannot be used, or nobody came in time.
        """
        host = await self._connected()
        try:
            async with asyncio.timeout(self._patience.open):
                self._tasks = await asyncio.shield(host.opened)
                return self._tasks
        except TimeoutError:
            detail = f"{self._source}: tasks not all told within {self._patience.open:g} s"
            raise invalid(detail, "Give fewer tasks, or make them faster") from None

    async def play(self, index: int, facts: dict[str, Any], turns: Turns) -> dict[str, Any]:
        """Has the host play a task; what it says of the rollout's end.

        Args:
            index: of the task, among those that it told.
            facts: of the rollout: its seed and its number in the group.
            turns: answers each request for a turn.

        Raises:
            RolloutFailedError: the host was lost, or the user's function raised.
            UserError: ``EnvironmentDied``: host after host was lost, or none came back;
                ``TasksetChanged``: it came back with other tasks.
        """
        if self._lost_in_a_row >= MOST_LOST:
            raise self._died(f"{self._lost_in_a_row} times in a row, the last time {self._lost}")
        host = await self._connected()
        await asyncio.shield(host.opened)
        if host.tasks != self._tasks:
            raise UserError(
                "TasksetChanged",
                f"{self._source} gave other tasks when the host was started again",
                "Let them follow from the seed alone",
            )
        self._numbers += 1
        number = self._numbers
        end: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        playing = host.playing[number] = Playing(turns, end)
        host.say({"kind": "play", "rollout": number, "task": index, **facts})
        try:
            said = await end
        except BaseException:
            # Timed out, or refused by the gateway: the user's function still waits for its turn.
            self._cancel(host, number)
            raise
        finally:
            host.playing.pop(number, None)
            if playing.asking is not None:
                playing.asking.cancel()
        self._lost_in_a_row = 0
        if "failed" in said:
            raise RolloutFailedError("Raised", str(said["failed"])[:MOST_DETAIL_CHARACTERS])
        return said

    def _cancel(self, host: HostConnection, number: int) -> None:
        """Stops a rollout; a host that cannot do that any more is given up."""
        if host.lost:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        host.cancelled[number] = done
        host.say({"kind": "cancel", "rollout": number})

        def give_up() -> None:
            if not done.done():
                seconds = self._patience.cancel
                self._lose(host, f"it did not stop a rollout within {seconds:g} s: does it block?")

        # The rollout's own time is over: it does not wait for this.
        asyncio.get_running_loop().call_later(self._patience.cancel, give_up)

    async def _connected(self) -> HostConnection:
        try:
            async with asyncio.timeout(self._patience.connect):
                await self._came.wait()
        except TimeoutError:
            waited = f"its host did not connect within {self._patience.connect:g} s"
            if self._lost:
                raise self._died(f"and none came in its place: {waited}; {self._lost}") from None
            raise RolloutFailedError("Died", waited) from None
        if self._host is None:
            raise RolloutFailedError("Died", f"its host was lost: {self._lost}")
        return self._host

    def _died(self, how: str) -> UserError:
        return UserError(
            "EnvironmentDied",
            f"{self._source}: its host was lost {how}",
            "Look at the log of the container environment, or environment-<evaluation>, of the "
            "runner's pod; mend the function, or give it more memory (resources of the source), "
            "then suspend and resume the run",
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._host is not None:
            # A second one is none of ours: one container has one host.
            writer.close()
            return
        host = self._host = HostConnection(self._source, self._remedy, writer)
        # Nobody may be waiting for it.
        host.opened.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            host.greet(await reader.readuntil(b"\n"))
            host.say({"kind": "open", **self._opening})
            self._came.set()
            while True:
                host.take(await reader.readuntil(b"\n"))
        except asyncio.IncompleteReadError:
            self._lose(host, "its process ended")
        except (LieError, ValueError, asyncio.LimitOverrunError) as error:
            long = isinstance(error, asyncio.LimitOverrunError)
            what = f"a line is longer than {MOST_LINE_BYTES} bytes" if long else str(error)
            self._lose(host, f"it said what is not of the protocol: {what}")
        except (ConnectionError, asyncio.CancelledError):
            self._lose(host, "its connection broke")

    def _lose(self, host: HostConnection, why: str) -> None:
        """Everything that waits for the host fails; another one may come."""
        if host.lost:
            return
        self._lost = why
        self._lost_in_a_row += 1
        if self._host is host:
            self._host = None
            self._came.clear()
        host.lose(why)
