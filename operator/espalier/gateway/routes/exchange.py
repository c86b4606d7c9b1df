"""A completion on its way, and the stream of its answer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from espalier.api.wire.headers import CHECKPOINT
from espalier.core.names import BASE
from espalier.gateway.access.answer_writer import write_part
from espalier.gateway.access.auth import User
from espalier.gateway.access.quotas import Share
from espalier.gateway.hud.trace_keepers import Keeper
from espalier.gateway.problems import RefusalError, openai_body
from espalier.gateway.routes.completion_request import Asked
from espalier.gateway.routes.rewrite import StreamRewriter, error_event, refuse_cut_short
from espalier.gateway.world.routing import Slug, Target
from espalier.podclient import unknown
from espalier.untrusted import UnreadableError


@dataclass
class Exchange:
    """One completion on its way. ``response`` is there once the client has a part of a stream.

    ``slug`` and ``ref`` are what was asked for, ``target`` what that means now.
    """

    request: web.Request
    user: User
    slug: Slug
    ref: str
    target: Target
    asked: Asked
    share: Share
    trace: str = ""
    keeper: Keeper | None = None
    response: web.StreamResponse | None = None
    started: float = field(default_factory=time.perf_counter)


async def pass_stream(upstream: aiohttp.ClientResponse, exchange: Exchange) -> web.StreamResponse:
    """Passes the events of a rollout on, as they come."""
    asked = exchange.asked
    rewriter = StreamRewriter(
        exchange.target.adapter, asked.model, asked.sampled, usage=asked.reads_usage
    )
    try:
        async for data in upstream.content.iter_any():
            try:
                events = rewriter.feed(data)
            except UnreadableError as error:
                raise unknown(upstream, f"streams an event that cannot be read: {error}") from error
            refuse_cut_short(events)
            if events:
                await write_part(exchange.request, await _begun(exchange), events)
    finally:
        # Those of a stream that its caller breaks off were sampled too.
        exchange.share.spend(rewriter.tokens)
    response = await _begun(exchange)
    await response.write_eof(rewriter.rest())
    return response


async def _begun(exchange: Exchange) -> web.StreamResponse:
    """Begins the stream to the client, as late as possible: until then another pod may be tried."""
    if exchange.response is None:
        exchange.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-cache",
                CHECKPOINT: exchange.target.checkpoint or BASE,
            }
        )
        await exchange.response.prepare(exchange.request)
    return exchange.response


async def break_off(response: web.StreamResponse, refusal: RefusalError) -> web.StreamResponse:
    """Ends a stream that cannot be resumed, so that the client sees that it is incomplete."""
    await response.write_eof(error_event(openai_body(refusal)))
    return response
