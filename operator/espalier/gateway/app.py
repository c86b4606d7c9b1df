"""The gateway's HTTP application: routes, request ids, errors, metrics."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import hdrs, web

from espalier.gateway import prometheus
from espalier.gateway.access import audit
from espalier.gateway.access.callers import Callers
from espalier.gateway.access.pod_calls import PodCalls
from espalier.gateway.access.pod_faults import refusal_of
from espalier.gateway.access.quotas import Quotas
from espalier.gateway.access.request_limits import Admission
from espalier.gateway.console.kept_rollouts import KeptRollouts
from espalier.gateway.console.page import Page
from espalier.gateway.console.routes import ConsoleRoutes
from espalier.gateway.console.standings import Standings
from espalier.gateway.context import ARRIVED, REQUEST_ID, UPSTREAM_SECONDS, GatewayContext
from espalier.gateway.hud.delivery import COMMANDS, is_unkeyed
from espalier.gateway.hud.fork import Forks
from espalier.gateway.hud.models import PlatformRoutes
from espalier.gateway.hud.set_head import HeadMoves
from espalier.gateway.hud.trace_keepers import TraceKeepers
from espalier.gateway.hud.trace_outbox import TraceOutbox
from espalier.gateway.hud.traces import TraceRoutes
from espalier.gateway.problems import CLIENT_GONE, RefusalError, counted, respond
from espalier.gateway.routes.barren_rounds import BarrenRoundRoutes
from espalier.gateway.routes.completions import CompletionRoutes
from espalier.gateway.routes.evaluations import EvaluationRoutes
from espalier.gateway.routes.openai_models import OpenAIModelRoutes
from espalier.gateway.routes.runs import RunRoutes
from espalier.gateway.routes.trainer_lookup import TrainerLookup
from espalier.gateway.routes.training import READS, TrainingRoutes
from espalier.gateway.tinker import refusals
from espalier.gateway.tinker.downloads import without_proof
from espalier.gateway.tinker.routes import TinkerRoutes
from espalier.gateway.world.watch import WorldWatch
from espalier.podclient import PodFaultError
from espalier.telemetry import http_server, spans

PLATFORM = "/v2/"
# A connection, new or idle, is closed when no whole request head arrives within this time.
HEAD_SECONDS = 75.0
# Settings of aiohttp's server: it inflates nothing and closes idle sockets. A client that
# disconnects frees its slot on the rollout at once.
SERVER: dict[str, Any] = {
    "auto_decompress": False,
    "keepalive_timeout": HEAD_SECONDS,
    "handler_cancellation": True,
    "access_log": None,
}

_WATCH = web.AppKey("watch", WorldWatch)
_BEGUN: web.RequestKey[bool] = web.RequestKey("begun", bool)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger(__name__)
_QUIET = frozenset({"/healthz", "/readyz"})
# A client may send any word: each would be a series for good.
_METHODS = frozenset(hdrs.METH_ALL)


def make_app(
    context: GatewayContext, unready: Callable[[], str], outbox: TraceOutbox | None = None
) -> web.Application:
    """The application.

    Args:
        context: what the handlers use.
        unready: why this replica takes no requests now; empty when it does.
        outbox: of traces that no trainer keeps yet; one of its own if none is given.
    """
    watch, auth, cluster = context.watch, context.auth, context.cluster
    admission = Admission(context.budgets.bodies, context.limits.body_percent)
    spanned = http_server.middlewares(quiet=_QUIET)
    in_use = context.connections.in_use
    app = web.Application(middlewares=[in_use, *spanned, _observe, _refuse, admission.admit])
    app.on_response_prepare.append(_name)
    app[_WATCH] = watch
    callers = Callers(watch, auth, context.offers)
    pods = PodCalls(context.session, context.tokens, context.budgets.answers)
    quotas = Quotas(context.limits)
    outbox = TraceOutbox() if outbox is None else outbox
    keepers = TraceKeepers(watch, auth, pods)
    traces = TraceRoutes(callers, watch, keepers, pods.answers, outbox)
    completions = CompletionRoutes(
        callers=callers,
        watch=watch,
        auth=auth,
        pods=pods,
        traces=traces,
        keepers=keepers,
        quotas=quotas,
    )
    trainers = TrainerLookup(watch, cluster, context.tokens, context.session)
    training = TrainingRoutes(
        callers=callers,
        watch=watch,
        auth=auth,
        pods=pods,
        traces=traces,
        trainers=trainers,
        quotas=quotas,
    )
    # Without /v1 too, as HUD's client calls its gateway.
    for prefix in ("/v1", ""):
        app.router.add_post(f"{prefix}/completions", completions.handle)
        app.router.add_post(f"{prefix}/chat/completions", completions.handle)
    models = OpenAIModelRoutes(callers, watch)
    app.router.add_get("/v1/models", models.list)
    for model in ("/v1/models/{slug}", "/v1/models/{namespace}/{slug}"):
        app.router.add_get(model, models.get)
    app.router.add_get("/v1/runs/{namespace}/{name}", RunRoutes(callers, watch, auth).get)
    evaluations = EvaluationRoutes(callers, watch, auth, context.cluster)
    app.router.add_post("/v1/checkpoints/{namespace}/{name}/evaluations", evaluations.post)
    app.router.add_post("/v1/runs/{namespace}/{name}/evaluations", evaluations.post_base)
    rounds = BarrenRoundRoutes(callers, watch, auth, cluster)
    app.router.add_put("/v1/runs/{namespace}/{name}/barren-rounds", rounds.put)
    forks = Forks(watch, cluster, auth)
    moves = HeadMoves(watch, cluster)
    PlatformRoutes(
        callers=callers,
        watch=watch,
        auth=auth,
        offers=context.offers,
        forks=forks,
        moves=moves,
    ).add_to(app.router)
    ConsoleRoutes(
        callers=callers,
        watch=watch,
        auth=auth,
        standings=Standings(cluster, auth),
        rollouts=KeptRollouts(watch, pods),
        moves=moves,
    ).add_to(app)
    Page().add_to(app.router)
    TinkerRoutes(context, callers, pods, forks, trainers, quotas).add_to(app.router)
    traces.add_to(app.router)
    for prefix in ("/v1/models/{slug}/train", "/v1/models/{namespace}/{slug}/train"):
        app.router.add_post(f"{prefix}/{{command:{'|'.join(sorted(COMMANDS))}}}", training.handle)
        app.router.add_get(f"{prefix}/{{command:{'|'.join(sorted(READS))}}}", training.handle)

    async def ready(_: web.Request) -> web.Response:
        why = unready()
        return web.json_response({"unready": why}, status=503 if why else 200)

    app.router.add_get("/healthz", _healthy)
    app.router.add_get("/readyz", ready)
    return app


async def _healthy(_: web.Request) -> web.Response:
    return web.Response(text="ok")


@web.middleware
async def _observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives the request its id and its time, and records its status and duration."""
    request[ARRIVED] = time.monotonic()
    given = request.headers.get(http_server.X_REQUEST_ID, "")
    request[REQUEST_ID] = http_server.request_id(given) or uuid.uuid4().hex
    spans.note({spans.REQUEST_ID: request[REQUEST_ID]})
    started = time.perf_counter()
    status = CLIENT_GONE
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        if request.path not in _QUIET:
            _record(request, status, time.perf_counter() - started)
            audit.write(request, request[REQUEST_ID], status)
            spans.note(audit.noted(request))


async def _name(request: web.Request, response: web.StreamResponse) -> None:
    """Puts the request's id, which a malformed one has not, into the answer that begins now."""
    request[_BEGUN] = True
    if REQUEST_ID in request:
        response.headers[http_server.X_REQUEST_ID] = request[REQUEST_ID]


def _record(request: web.Request, status: int, seconds: float) -> None:
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else "unknown"
    upstream = request.get(UPSTREAM_SECONDS)
    method = request.method if request.method in _METHODS else "other"
    prometheus.REQUESTS.labels(route, method, str(status)).inc()
    prometheus.DURATION.labels(route).observe(seconds)
    if upstream is not None:
        prometheus.UPSTREAM.labels(route).observe(upstream)
    _log.info(
        "request",
        extra={
            "request_id": request[REQUEST_ID],
            "method": request.method,
            "path": without_proof(request.path),
            "status": status,
            "milliseconds": round(seconds * 1e3, 2),
            "upstream_milliseconds": None if upstream is None else round(upstream * 1e3, 2),
        },
    )


@web.middleware
async def _refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns every error into the form of its route."""
    try:
        return await handler(request)
    except RefusalError as refusal:
        answer = refusal
    except web.HTTPException as error:
        answer = _of_http(request, error)
    except PodFaultError as fault:
        answer = refusal_of(request.app[_WATCH].world, fault)
    except (asyncio.CancelledError, ConnectionResetError):
        raise
    except Exception:
        _log.exception("request failed", extra={"request_id": request[REQUEST_ID]})
        answer = RefusalError(
            500,
            "InternalError",
            "the gateway failed on this request",
            f"Its log has the cause under request id {request[REQUEST_ID]}",
        )
    counted(answer)
    request[audit.REASON] = answer.reason
    spans.note({spans.REASON: answer.reason})
    if _BEGUN in request:
        # A second answer would be read as a part of the first, and an end as the whole of it.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError(f"the answer is broken off: {answer.message}")
    if refusals.is_tinker(request.path):
        return refusals.respond(answer)
    return respond(_for(request, answer), openai=not _is_ours(request.path))


def _of_http(request: web.Request, error: web.HTTPException) -> RefusalError:
    match error.status:
        case 404:
            return RefusalError(404, "NoSuchRoute", f"no route {request.method} {request.path}")
        case 405:
            return RefusalError(
                405, "MethodNotAllowed", f"{request.path} takes no {request.method}"
            )
    return RefusalError(error.status, "BadRequest", error.text or error.reason)


def _for(request: web.Request, refusal: RefusalError) -> RefusalError:
    """Adds the remedy to ``detail`` on HUD's routes, because HUD's client shows only ``detail``."""
    if not (request.path.startswith(PLATFORM) or is_unkeyed(request)):
        return refusal
    return RefusalError(
        refusal.status,
        refusal.reason,
        refusal.message,
        refusal.remedy,
        retry_after=refusal.retry_after,
    )


def _is_ours(path: str) -> bool:
    ours = ("/v1/runs/", "/v1/checkpoints/", "/v3/", "/console", PLATFORM)
    return "/train/" in path or path.startswith(ours)
