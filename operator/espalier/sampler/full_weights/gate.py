"""Holds back completions while weights change, so that no completion mixes two sets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from http import HTTPStatus

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A rollout loads within this time; a caller that waits longer gets 503 and may repeat.
HELD_SECONDS = 120.0
STOP_SECONDS = 10.0


class StoppedError(Exception):
    """A stream that had begun was stopped; its connection breaks, so that the reader notices."""


class WeightsGate:
    """ASGI middleware for routes whose answers must come from one set of weights each."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open = asyncio.Event()
        self._open.set()
        self._running: set[asyncio.Future[None]] = set()
        self._stopped: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on once the gate is open; 503 when it stays shut, 409 when stopped."""
        try:
            async with asyncio.timeout(HELD_SECONDS):
                # It may have shut again before this task's turn.
                while not self._open.is_set():
                    await self._open.wait()
        except TimeoutError:
            refusal = _error(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "WeightsLoading",
                f"weights have been loading for {HELD_SECONDS:.0f} s; send the request again",
            )
            await refusal(scope, receive, send)
            return
        begun = False

        async def passed(message: Message) -> None:
            nonlocal begun
            if call in self._stopped:
                return
            begun = True
            await send(message)

        call = asyncio.ensure_future(_run(self._app(scope, receive, passed)))
        self._running.add(call)
        call.add_done_callback(self._running.discard)
        try:
            await asyncio.wait({call})
        finally:
            call.cancel()
        if call not in self._stopped:
            call.result()
            return
        self._stopped.discard(call)
        if begun:
            raise StoppedError("the weights were replaced in mid-stream")
        refusal = _error(
            HTTPStatus.CONFLICT,
            "WeightsReplaced",
            "the weights were replaced before this completion ended; send the request again",
        )
        await refusal(scope, receive, send)

    @asynccontextmanager
    async def shut(self, seconds: float) -> AsyncIterator[None]:
        """Shuts the gate: new requests wait, running ones have ``seconds`` to end.

        Those that do not are stopped, and answered 409 with reason WeightsReplaced.
        """
        self._open.clear()
        try:
            if self._running:
                await asyncio.wait(self._running, timeout=seconds)
            late = set(self._running)
            self._stopped |= late
            for call in late:
                call.cancel()
            if late:
                await asyncio.wait(late, timeout=STOP_SECONDS)
            yield
        finally:
            self._open.set()


async def _run(call: Awaitable[None]) -> None:
    await call


def _error(status: HTTPStatus, reason: str, detail: str) -> JSONResponse:
    """An error in OpenAI's form, as vLLM's own are."""
    error = {"message": f"{detail} ({reason})", "type": reason, "param": None, "code": status.value}
    return JSONResponse({"error": error}, status_code=status)
