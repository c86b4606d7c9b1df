"""Liveness, readiness and metrics over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

# A connection, new or idle, is closed when no whole request head arrives within this time.
HEAD_SECONDS = 75.0
# None when all is well, else what is wrong.
Check = Callable[[], str | None]


class HealthServer:
    """``/healthz`` and ``/readyz`` run named checks, ``/metrics`` is Prometheus text."""

    def __init__(
        self,
        port: int,
        live: Mapping[str, Check],
        ready: Mapping[str, Check],
        host: str = "0.0.0.0",
    ) -> None:
        self._address = (host, port)
        app = web.Application()
        app.router.add_get("/healthz", _route(live))
        app.router.add_get("/readyz", _route(ready))
        app.router.add_get("/metrics", _metrics)
        self._runner = web.AppRunner(
            app, access_log=None, auto_decompress=False, keepalive_timeout=HEAD_SECONDS
        )

    @property
    def port(self) -> int:
        """The port that is served, once started; useful when it was 0."""
        return int(self._runner.addresses[0][1])

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, *self._address).start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()


def _route(checks: Mapping[str, Check]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        faults = {name: fault for name, check in checks.items() if (fault := check())}
        return web.json_response(
            {name: faults.get(name, "ok") for name in checks}, status=503 if faults else 200
        )

    return answer


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
