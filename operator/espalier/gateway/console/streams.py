"""Server-sent events: that something changed, so that a reader reads again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from functools import partial

from aiohttp import web

from espalier.api.console import Changed
from espalier.gateway.access.answer_writer import write_part
from espalier.gateway.access.auth import User
from espalier.gateway.problems import RefusalError, over
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import ServedWorld

# Changes within this time are told as one.
PAUSE_SECONDS = 0.3
# A comment is sent after so long without a change, and the caller's rights are looked at again.
BEAT_SECONDS = 15.0
# At once, of a gateway and of one caller.
STREAMS_MOST, OF_ONE_MOST = 256, 16


class Streams:
    """The open streams of a gateway."""

    def __init__(self, watch: WorldWatch) -> None:
        self._watch = watch
        self._open: dict[asyncio.Task[None], str] = {}

    async def send(
        self,
        request: web.Request,
        user: User,
        changed: Changed,
        look: Callable[[], Awaitable[Hashable]],
    ) -> web.StreamResponse:
        """Sends an event at once and after every change, until the caller goes or is refused.

        Args:
            request: to answer.
            user: its caller.
            changed: data of the event.
            look: what differs once the caller would see something else; refuses one who may not.
        """
        task = asyncio.current_task()
        assert task is not None
        self._admit(user)
        self._open[task] = user.name
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        try:
            await response.prepare(request)
            await self._follow(partial(write_part, request, response), changed, look)
        finally:
            del self._open[task]
        return response

    async def close(self, _: web.Application) -> None:
        """Ends all streams: a shutdown waits for answers."""
        for task in list(self._open):
            task.cancel()

    def _admit(self, user: User) -> None:
        mine = Counter(self._open.values())[user.name]
        if len(self._open) < STREAMS_MOST and mine < OF_ONE_MOST:
            return
        raise over(
            "TooManyStreams",
            f"{mine} streams of changes are open for {user.name}, and {len(self._open)} in all",
            "Close pages of the console that you do not read",
            retry_after=int(BEAT_SECONDS),
        )

    async def _follow(
        self,
        tell: Callable[[bytes], Awaitable[None]],
        changed: Changed,
        look: Callable[[], Awaitable[Hashable]],
    ) -> None:
        event = f"event: changed\ndata: {changed.model_dump_json()}\n\n".encode()
        told: Hashable = None
        while True:
            before = self._watch.world.revision
            try:
                now = await look()
            except RefusalError as refusal:
                # After a fault that passes, the reader opens another stream.
                if refusal.status < 500:
                    problem = refusal.problem.model_dump_json()
                    await tell(f"event: refused\ndata: {problem}\n\n".encode())
                return
            if now != told:
                await tell(event)
                told = now
            if not await self._changes_after(before):
                await tell(b": still here\n\n")
            await asyncio.sleep(PAUSE_SECONDS)

    async def _changes_after(self, revision: int) -> bool:
        """Waits for a change of anything; False once it is time for a comment."""

        def newer(world: ServedWorld) -> bool | None:
            return True if world.revision != revision else None

        return bool(await self._watch.wait_for(newer, BEAT_SECONDS))
