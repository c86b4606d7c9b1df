"""Routes of traces; the gateway sends reports and samples on its caller's behalf."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from espalier.api.platform import JobReport, TraceEnter, TraceExit
from espalier.api.wire.trajectory import TrajectorySample
from espalier.trainer.http.requests import Body, parse
from espalier.trainer.problems import CommandError
from espalier.trainer.volume.trace_store import Traces

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def add_to(
    router: web.UrlDispatcher,
    traces: Callable[[], Traces],
    read: Callable[[web.Request], Awaitable[bytes]],
) -> None:
    """Registers the routes.

    Args:
        router: the trainer's router.
        traces: returns the store; raises 503 while the trainer loads.
        read: reads a body within the trainer's limit.
    """

    def reported(kind: type[Body], keep: Callable[[Traces, str, Body], None]) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            report = await asyncio.to_thread(parse, kind, await read(request))
            await asyncio.to_thread(keep, traces(), request.match_info["id"], report)
            return web.json_response({})

        return handle

    async def get(request: web.Request) -> web.Response:
        name = request.match_info["id"]
        record = await asyncio.to_thread(traces().record, name)
        if record is None:
            raise CommandError(404, "TraceNotFound", f"trace {name} is unknown here")
        return web.Response(text=record.model_dump_json(), content_type="application/json")

    router.add_post("/traces/job/{id}/enter", reported(JobReport, Traces.enter_job))
    router.add_post("/traces/{id}/enter", reported(TraceEnter, Traces.enter))
    router.add_post("/traces/{id}/exit", reported(TraceExit, Traces.exit))
    router.add_post("/traces/{id}/samples", reported(TrajectorySample, Traces.add))
    router.add_get("/traces/{id}", get)
