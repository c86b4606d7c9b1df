"""OpenAI's completion routes: find the pod, pass the request on, pass the answer back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import aiohttp
from aiohttp import web

from espalier.api.wire.headers import CALLER, CHECKPOINT
from espalier.core.names import BASE
from espalier.gateway import prometheus
from espalier.gateway.access.answer_writer import write_answer
from espalier.gateway.access.audit import ACT, audited
from espalier.gateway.access.auth import Authenticator
from espalier.gateway.access.byte_budget import Hold
from espalier.gateway.access.callers import Callers
from espalier.gateway.access.pod_answers import read_held
from espalier.gateway.access.pod_calls import PodCalls
from espalier.gateway.access.pod_faults import refusal_of
from espalier.gateway.access.quotas import Quotas
from espalier.gateway.access.request_body import read_object
from espalier.gateway.context import REQUEST_ID, UPSTREAM_SECONDS
from espalier.gateway.hud.trace_keepers import TraceKeepers
from espalier.gateway.hud.traces import NOT_KEPT, TRACE_KEPT, TraceRoutes, trace_of
from espalier.gateway.problems import RefusalError, not_ready
from espalier.gateway.routes.asked_target import Targets
from espalier.gateway.routes.completion_request import read_asked
from espalier.gateway.routes.exchange import Exchange, break_off, pass_stream
from espalier.gateway.routes.full_weights_swap import SENDINGS, NotLoadedError, after_the_move
from espalier.gateway.routes.rewrite import refuse_cut_short, rewrite_answer, tokens_of
from espalier.gateway.world.pod_addresses import PodAddress, why_none_ready
from espalier.gateway.world.replica_order import by_key, in_turn
from espalier.gateway.world.routing import ROLLOUT, Target
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName
from espalier.podclient import PodFaultError, unknown
from espalier.telemetry import spans
from espalier.telemetry.http_server import X_REQUEST_ID
from espalier.untrusted import UnreadableError, read_json

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 600.0
ATTEMPTS = 2
MAX_ERROR_BYTES = 64 * 1024
MAX_ERROR_CHARS = 4000

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=ANSWER_SECONDS)


class CompletionRoutes:
    """Handler of ``/v1/completions`` and ``/v1/chat/completions``."""

    def __init__(
        self,
        *,
        callers: Callers,
        watch: WorldWatch,
        auth: Authenticator,
        pods: PodCalls,
        traces: TraceRoutes,
        keepers: TraceKeepers,
        quotas: Quotas,
    ) -> None:
        self._callers = callers
        self._watch = watch
        self._targets = Targets(callers, watch, auth)
        self._pods = pods
        self._traces = traces
        self._keepers = keepers
        self._quotas = quotas
        self._turns: Counter[NamespacedName] = Counter()

    @audited("Sample")
    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Completes at a rollout pod that serves the named model or checkpoint."""
        user = await self._callers.caller(request, "sample")
        await self._callers.require_some_model(user)
        asked = read_asked(await read_object(request))
        trace = trace_of(request.headers)
        request[ACT].target = asked.reference
        slug, ref, target = await self._targets.locate(user, asked.reference, wait=bool(trace))
        request[ACT].of("TrainableModel", target.model, after=target.checkpoint or BASE)
        spans.note({spans.CHECKPOINT: target.checkpoint or BASE})
        recorded = bool(trace) and asked.recordable
        keeper = await self._keepers.keeper(user, target.model) if recorded else None
        async with self._quotas.sample(user, target.model) as share:
            exchange = Exchange(request, user, slug, ref, target, asked, share, trace, keeper)
            try:
                return await self._complete(exchange)
            finally:
                request.setdefault(UPSTREAM_SECONDS, time.perf_counter() - exchange.started)

    async def _complete(self, exchange: Exchange) -> web.StreamResponse:
        for _ in range(SENDINGS):
            try:
                return await self._send(exchange)
            except NotLoadedError as error:
                target = await after_the_move(
                    self._watch, exchange.slug, exchange.ref, exchange.target, error
                )
                exchange.target = target
                refused = error
        raise not_ready("HeadMoving", f"{exchange.asked.model} is moved again and again: {refused}")

    async def _send(self, exchange: Exchange) -> web.StreamResponse:
        recorded = exchange.keeper is not None
        sent = exchange.asked.text(exchange.target.adapter, recorded=recorded)
        lost: Exception
        for attempt, pod in enumerate(self._order(exchange)):
            if attempt:
                prometheus.RETRIES.inc()
            try:
                return await self._send_to(pod, exchange, sent)
            except NotLoadedError as error:
                lost = error
            except PodFaultError as fault:
                if exchange.response is None:
                    raise
                refusal = refusal_of(self._watch.world, fault)
                return await break_off(exchange.response, refusal)
            except aiohttp.ClientError as error:
                if _gone(exchange.request):
                    raise asyncio.CancelledError from error
                if exchange.response is not None:
                    detail = f"the rollout was lost in mid-stream: {error}"
                    return await break_off(
                        exchange.response,
                        RefusalError(503, "StreamBroken", detail, "Send it again"),
                    )
                if isinstance(error, aiohttp.SocketTimeoutError):
                    raise RefusalError(
                        504, "RolloutTimeout", f"no answer within {ANSWER_SECONDS:.0f} s"
                    ) from error
                lost = error
        if isinstance(lost, NotLoadedError):
            raise lost
        raise self._lost(exchange.target, lost)

    def _order(self, exchange: Exchange) -> list[PodAddress]:
        """The pods to try; the same one again when it is alone.

        Requests of one key go to one of them, whose prefix cache then serves them all.
        """
        target, key = exchange.target, exchange.asked.cache_key
        if key:
            ordered = by_key(target.pods, key)
        else:
            ordered = in_turn(target.pods, self._turns[target.model])
            self._turns[target.model] += 1
        return [ordered[attempt % len(ordered)] for attempt in range(ATTEMPTS)]

    async def _send_to(
        self, pod: PodAddress, exchange: Exchange, sent: bytes
    ) -> web.StreamResponse:
        headers = self._pods.tokens.header(exchange.target.model, pod)
        headers["Content-Type"] = "application/json"
        headers[X_REQUEST_ID] = exchange.request[REQUEST_ID]
        headers[CALLER] = exchange.user.digest
        async with self._pods.session.post(
            f"http://{pod.address}/v1/{exchange.request.path.removeprefix('/v1').lstrip('/')}",
            data=sent,
            headers=headers,
            timeout=_TIMEOUT,
        ) as upstream:
            if upstream.content_type == "text/event-stream":
                return await pass_stream(upstream, exchange)
            with self._pods.answers.hold() as hold:
                return await self._pass_back(upstream, exchange, hold)

    async def _pass_back(
        self, upstream: aiohttp.ClientResponse, exchange: Exchange, hold: Hold
    ) -> web.Response:
        answer = await read_held(upstream, hold)
        if upstream.status == web.HTTPConflict.status_code:
            raise NotLoadedError(_message_of(answer))
        kept: dict[str, str] = {}
        if upstream.status == 200:
            exchange.share.spend(tokens_of(answer))
            refuse_cut_short(answer)
            try:
                answer = rewrite_answer(
                    *(answer, exchange.target.adapter, exchange.asked.model), exchange.asked.sampled
                )
            except UnreadableError as error:
                raise unknown(upstream, f"answers with no completion: {error}") from error
            kept = {CHECKPOINT: exchange.target.checkpoint or BASE}
            kept |= await self._keep(exchange, answer)
        response = web.Response(
            body=answer, status=upstream.status, content_type=upstream.content_type, headers=kept
        )
        exchange.request[UPSTREAM_SECONDS] = time.perf_counter() - exchange.started
        await write_answer(exchange.request, response)
        return response

    async def _keep(self, exchange: Exchange, answer: bytes) -> dict[str, str]:
        """Keeps a turn of a trace; the header that says whether it was."""
        if not exchange.trace:
            return {}
        if exchange.keeper is None:
            return {TRACE_KEPT: NOT_KEPT}
        kept = await self._traces.record(
            *(exchange.keeper, exchange.trace, answer),
            drawn=exchange.asked.sampled,
            checkpoint=exchange.target.checkpoint,
        )
        return {TRACE_KEPT: kept}

    def _lost(self, target: Target, error: Exception) -> RefusalError:
        pods = self._watch.world.pods_of(target.model, ROLLOUT)
        waiting = why_none_ready(pods)
        if waiting is not None:
            return not_ready(waiting.reason, f"{error}; {waiting.message}", from_pod=True)
        return not_ready("RolloutUnreachable", f"a rollout of {target.model} is lost: {error}")


def _message_of(answer: bytes) -> str:
    """The message of a rollout's error."""
    try:
        return str(read_json(answer[:MAX_ERROR_BYTES])["error"]["message"])[:MAX_ERROR_CHARS]
    except (UnreadableError, LookupError, TypeError):
        return answer.decode(errors="replace")[:200]


def _gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()
