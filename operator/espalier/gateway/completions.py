"""OpenAI's completion routes: find the pod, pass the request on, pass the answer back."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from pydantic_core import from_json

from espalier.gateway import metrics
from espalier.gateway.auth import User
from espalier.gateway.moves import SENDINGS, NotLoadedError, after_the_move
from espalier.gateway.pods import why_none_ready
from espalier.gateway.problems import RefusalError, not_ready, openai_body
from espalier.gateway.relay import StreamRewriter, error_event, rewrite_answer
from espalier.gateway.routing import (
    ROLLOUT,
    NotReady,
    Slug,
    Target,
    Unknown,
    could_be_committed,
    resolve,
    split,
)
from espalier.gateway.sampling import (
    check_continuation,
    check_honoured,
    check_rendering,
    reference,
)
from espalier.gateway.services import HELD_SECONDS, UPSTREAM_SECONDS, Services
from espalier.gateway.snapshot import Id, Snapshot
from espalier.gateway.traces import Keeper, Traces, trace_of

# A checkpoint's commit is acknowledged before its object reaches the cache.
CHECKPOINT_WAIT_SECONDS = 10.0
CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 600.0
ATTEMPTS = 2
TRACE_KEPT = "Espalier-Trace"

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=ANSWER_SECONDS)


@dataclass
class _Exchange:
    """One completion on its way. ``response`` is there once the client has a part of a stream.

    ``slug`` and ``ref`` are what was asked for, ``target`` what that means now.
    """

    request: web.Request
    slug: Slug
    ref: str
    target: Target
    body: dict[str, Any]
    asked: str
    trace: str = ""
    keeper: Keeper | None = None
    response: web.StreamResponse | None = None


class Completions:
    """Handler of ``/v1/completions`` and ``/v1/chat/completions``."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._traces = Traces(services)
        self._turns: Counter[Id] = Counter()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Completes at a rollout pod that serves the named model or checkpoint."""
        user = await self._services.caller(request)
        body = await _read(request)
        asked = body["model"]
        trace = trace_of(request.headers)
        slug, ref, target = await self._locate(user, reference(body), held=bool(trace))
        check_rendering(body)
        check_honoured(body)
        check_continuation(body)
        keeper = await self._traces.keeper(user, target.model) if _recordable(trace, body) else None
        if keeper is not None:
            # What is trained on later needs them, whether or not this client looks at them.
            body |= {"return_token_ids": True, "logprobs": True}
        exchange = _Exchange(request, slug, ref, target, body, asked, trace, keeper)
        started = time.perf_counter()
        try:
            return await self._complete(exchange)
        finally:
            request[UPSTREAM_SECONDS] = time.perf_counter() - started

    async def _locate(self, user: User, asked: str, *, held: bool) -> tuple[Slug, str, Target]:
        named, ref = split(asked)
        slug = await self._services.sampled(user, named)
        model = slug.model
        await self._services.auth.require(user, "get", "trainablemodels", model)
        found = resolve(self._services.view.snapshot, model, ref, slug.head)
        if isinstance(found, Unknown):
            found = await self._wait_for_checkpoint(model, ref) or found
        if isinstance(found, NotReady) and held:
            found = await self._wait_until_served(slug, ref) or found
        if isinstance(found, Unknown):
            raise await self._services.unknown(user, found)
        if isinstance(found, NotReady):
            raise not_ready(found.reason, found.message, found.remedy)
        return slug, ref, found

    async def _wait_for_checkpoint(self, model: Id, ref: str) -> Target | NotReady | Unknown | None:
        view = self._services.view
        if not could_be_committed(view.snapshot, model, ref):
            return None

        def known(snapshot: Snapshot) -> Target | NotReady | Unknown | None:
            if model not in snapshot.models:
                return Unknown(f"model {model} was deleted")
            found = resolve(snapshot, model, ref)
            return None if isinstance(found, Unknown) else found

        return await view.wait_for(known, CHECKPOINT_WAIT_SECONDS)

    async def _wait_until_served(self, slug: Slug, ref: str) -> Target | NotReady | Unknown | None:
        def settled(snapshot: Snapshot) -> Target | NotReady | Unknown | None:
            if slug.model not in snapshot.models:
                return Unknown(f"model {slug.model} was deleted")
            found = resolve(snapshot, slug.model, ref, slug.head)
            return None if isinstance(found, NotReady) and found.passing else found

        return await self._services.view.wait_for(settled, HELD_SECONDS)

    async def _complete(self, exchange: _Exchange) -> web.StreamResponse:
        for _ in range(SENDINGS):
            try:
                return await self._send(exchange)
            except NotLoadedError as error:
                found = await after_the_move(
                    self._services.view, exchange.slug, exchange.ref, exchange.target, error
                )
                exchange.target = found
                refused = error
        raise not_ready("HeadMoving", f"{exchange.asked} is moved again and again: {refused}")

    async def _send(self, exchange: _Exchange) -> web.StreamResponse:
        body = exchange.body | {"model": exchange.target.adapter}
        sent = json.dumps(body, ensure_ascii=False).encode()
        lost: Exception
        for attempt, address in enumerate(self._order(exchange.target)):
            if attempt:
                metrics.RETRIES.inc()
            try:
                return await self._send_to(address, exchange, sent)
            except NotLoadedError as error:
                lost = error
            except aiohttp.ClientError as error:
                if _gone(exchange.request):
                    raise asyncio.CancelledError from error
                if exchange.response is not None:
                    return await _break_off(exchange.response, error)
                if isinstance(error, aiohttp.SocketTimeoutError):
                    raise RefusalError(
                        504, "RolloutTimeout", f"no answer within {ANSWER_SECONDS:.0f} s"
                    ) from error
                lost = error
        if isinstance(lost, NotLoadedError):
            raise lost
        raise self._lost(exchange.target, lost)

    def _order(self, target: Target) -> list[str]:
        """The pods to try, each model's in turn; the same one again when it is alone."""
        turn = self._turns[target.model]
        self._turns[target.model] += 1
        count = len(target.addresses)
        return [target.addresses[(turn + attempt) % count] for attempt in range(ATTEMPTS)]

    async def _send_to(self, address: str, exchange: _Exchange, sent: bytes) -> web.StreamResponse:
        headers = self._services.tokens.header(exchange.target.model)
        headers["Content-Type"] = "application/json"
        async with self._services.session.post(
            f"http://{address}/v1/{exchange.request.path.removeprefix('/v1').lstrip('/')}",
            data=sent,
            headers=headers,
            timeout=_TIMEOUT,
        ) as upstream:
            if upstream.content_type == "text/event-stream":
                return await _stream(upstream, exchange)
            answer = await upstream.read()
            if upstream.status == web.HTTPConflict.status_code:
                raise NotLoadedError(_said(answer))
            kept = {}
            if upstream.status == 200:
                answer = rewrite_answer(answer, exchange.target.adapter, exchange.asked)
                kept = await self._keep(exchange, answer)
            return web.Response(
                body=answer,
                status=upstream.status,
                content_type=upstream.content_type,
                headers=kept,
            )

    async def _keep(self, exchange: _Exchange, answer: bytes) -> dict[str, str]:
        """Keeps a turn of a trace; the header that says whether it was."""
        if not exchange.trace:
            return {}
        kept = exchange.keeper is not None and await self._traces.record(
            exchange.keeper, exchange.trace, from_json(answer)
        )
        return {TRACE_KEPT: "Kept" if kept else "NotKept"}

    def _lost(self, target: Target, error: Exception) -> RefusalError:
        pods = self._services.view.snapshot.pods_of(target.model, ROLLOUT)
        waiting = why_none_ready(pods)
        if waiting is not None:
            return not_ready(waiting.reason, f"{error}; {waiting.message}")
        return not_ready("RolloutUnreachable", f"a rollout of {target.model} is lost: {error}")


async def _read(request: web.Request) -> dict[str, Any]:
    try:
        body = from_json(await request.read())
    except ValueError as error:
        raise RefusalError(400, "InvalidJson", f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise RefusalError(400, "InvalidJson", "the body is not a JSON object")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise RefusalError(
            400,
            "ModelMissing",
            "field model is missing or not text",
            "Set model to a slug, slug@checkpoint or slug@base",
        )
    return body


async def _stream(upstream: aiohttp.ClientResponse, exchange: _Exchange) -> web.StreamResponse:
    rewriter = StreamRewriter(exchange.target.adapter, exchange.asked)
    async for data in upstream.content.iter_any():
        if events := rewriter.feed(data):
            await (await _begun(exchange)).write(events)
    response = await _begun(exchange)
    await response.write_eof(rewriter.rest())
    return response


async def _begun(exchange: _Exchange) -> web.StreamResponse:
    """The stream to the client, begun as late as possible: until then another pod may be tried."""
    if exchange.response is None:
        exchange.response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await exchange.response.prepare(exchange.request)
    return exchange.response


async def _break_off(response: web.StreamResponse, error: Exception) -> web.StreamResponse:
    """Ends a stream that cannot be taken up again, so that the client sees it is incomplete."""
    refusal = RefusalError(
        503, "StreamBroken", f"the rollout was lost in mid-stream: {error}", "Send it again"
    )
    await response.write_eof(error_event(openai_body(refusal)))
    return response


def _said(answer: bytes) -> str:
    """The message of a rollout's error."""
    try:
        return str(from_json(answer)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.decode(errors="replace")[:200]


def _recordable(trace: str, body: Mapping[str, Any]) -> bool:
    """A turn is one answer to one chat; a stream or a choice of several is none."""
    several = body.get("n") not in (None, 1)
    return bool(trace) and "messages" in body and not body.get("stream") and not several


def _gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()
