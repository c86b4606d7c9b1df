"""A proxy in front of the API server that can lose what a watch should have reported."""

from __future__ import annotations

import asyncio
import contextlib
import json
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web

from espalier.kube.apiserver import KubernetesCluster

GONE = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired"}
BROKEN = GONE | {"code": 500, "reason": "InternalError"}


class LossyProxy:
    """Passes GETs on.

    ``blind`` withholds all events, ``expire`` then ends every watch with 410, and ``fail`` with
    another error. ``refuse`` ends every watch and answers with a status; ``refused`` has
    one for each.
    """

    def __init__(self, upstream: KubernetesCluster) -> None:
        self._upstream = upstream
        self._session = upstream.watch_session()
        self._runner = web.ServerRunner(web.Server(self._pass_on))
        self._blind = False
        self._last: dict[str, Any] = GONE
        self._refusal = 0
        self.refused = asyncio.Semaphore(0)
        self._expiries: set[asyncio.Event] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for expiry in self._expiries:
            expiry.set()
        await self._runner.cleanup()
        await self._session.close()

    def blind(self) -> None:
        self._blind = True

    def expire(self) -> None:
        self._blind = False
        for expiry in self._expiries:
            expiry.set()

    def fail(self) -> None:
        self._last = BROKEN
        self.expire()

    def refuse(self, status: int) -> None:
        self._refusal = status
        self.expire()

    def relent(self) -> None:
        self._refusal = 0

    async def _pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._refusal:
            self.refused.release()
            return web.json_response(
                {"kind": "Status", "code": self._refusal}, status=self._refusal
            )
        url = f"{self._upstream.server}{request.rel_url}"
        async with self._session.get(url) as answer:
            if "watch" not in request.query:
                return web.Response(body=await answer.read(), content_type="application/json")
            response = web.StreamResponse(status=answer.status)
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                await self._stream(answer, response)
            return response

    async def _stream(self, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
        expiry = asyncio.Event()
        self._expiries.add(expiry)
        expired = asyncio.create_task(expiry.wait())
        try:
            while True:
                line = asyncio.create_task(answer.content.readline())
                await asyncio.wait({line, expired}, return_when=asyncio.FIRST_COMPLETED)
                if expired.done():
                    line.cancel()
                    event = {"type": "ERROR", "object": self._last}
                    await response.write(json.dumps(event).encode() + b"\n")
                    return
                if not line.result():
                    return
                if not self._blind:
                    await response.write(line.result())
        finally:
            expired.cancel()
            self._expiries.discard(expiry)
