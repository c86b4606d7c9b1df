"""The control route of a rollout pod: what it is to serve, and whether it is ready and alive.

A pod is ready once it has fulfilled a serve request, so a restarted one is ready only when it holds
what the heads of its model say.
"""

from __future__ import annotations

import asyncio
import os
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.logger import init_logger

from espalier import process
from espalier.api.exit_codes import FAULT
from espalier.api.wire.headers import CALLER
from espalier.api.wire.problem import Problem
from espalier.api.wire.rollout_control import KEPT_ROLLOUTS, ServeRequest
from espalier.core import names
from espalier.sampler import chat_checks, continuation, guard, settings, turns
from espalier.sampler.full_weights.gate import WeightsGate
from espalier.sampler.full_weights.serving import FullServing
from espalier.sampler.full_weights.store import FullStore
from espalier.sampler.kept_rollouts import KeptRollouts
from espalier.sampler.lora_adapters import AdapterServing
from espalier.sampler.served import ServeError, Serving
from espalier.sampler.verified_files import StoreError
from espalier.sampler.verified_store import VerifiedCheckpoints
from espalier.telemetry import asgi, spans
from espalier.telemetry.settings import spans_endpoint
from espalier.unchanged import end_if_changed

logger = init_logger("vllm.espalier.serve")

HEALTH_SECONDS = 10.0
COMPLETIONS = ("/v1/completions", "/v1/chat/completions")


class ControlRoutes:
    """ASGI middleware that answers the probes and our own routes, and passes on the rest."""

    def __init__(self, app: ASGIApp, configuration: settings.SamplerSettings) -> None:
        self._app = app
        self._configuration = configuration
        # Adapters are chosen per request, so only weights that are replaced need it.
        self._gate = WeightsGate(app) if configuration.adapter_type == "Full" else None
        self._serving: Serving | None = None
        kept = KeptRollouts(VerifiedCheckpoints(configuration.volume, configuration.base))
        self._router = Router(
            [
                Route(guard.HEALTH, self._health, methods=["GET"]),
                Route(guard.READY, self._ready, methods=["GET"]),
                Route(guard.SERVE, self._get, methods=["GET"]),
                Route(guard.SERVE, self._post, methods=["POST"]),
                Route(KEPT_ROLLOUTS, kept.get, methods=["GET"]),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Set up at start, before the first connection is accepted; then route."""
        if scope["type"] == "lifespan":
            await self._start(scope["app"].state)
        else:
            turns.CALLER.set(Headers(scope=scope).get(CALLER, ""))
        await self._route(scope)(scope, receive, send)

    def _route(self, scope: Scope) -> ASGIApp:
        if scope["type"] != "http":
            return self._app
        if scope["path"] in (*guard.PROBES, guard.SERVE, KEPT_ROLLOUTS):
            return self._router
        return self._gate if self._gate and scope["path"] in COMPLETIONS else self._app

    async def _start(self, state: Any) -> None:
        """Makes ready to be told what to serve; no route answers before.

        Ends the process where that fails, or the base was changed: a server goes on to listen
        where a lifespan raises.
        """
        # vLLM has loaded it by now. Where it is another one, that is what is told.
        end_if_changed(state.args.espalier_base)
        try:
            serving = await self._prepared(state)
        except StoreError as error:
            process.end_with(error.problem, FAULT)
        except Exception as error:
            logger.exception("the server cannot be made ready")
            problem = Problem(
                reason="StartFailed",
                detail=f"the server cannot be made ready: {type(error).__name__}: {error}",
                remedy="see the sampler's log; the kubelet restarts it",
            )
            process.end_with(problem, FAULT)
        # Nor has anything read other bytes meanwhile.
        end_if_changed(state.args.espalier_base)
        self._serving = serving

    async def _prepared(self, state: Any) -> Serving:
        serving = self._started(state)
        chat_checks.install(state.openai_serving_chat, continuation.FIELDS)
        chat_checks.install_plain(state.openai_serving_completion)
        continuation.install(state.openai_serving_chat)
        turns.install(state.engine_client)
        await serving.warm_up()
        return serving

    def _started(self, state: Any) -> Serving:
        if self._gate is None:
            return AdapterServing(state)
        config = state.vllm_config.model_config.hf_text_config
        tied = bool(getattr(config, "tie_word_embeddings", False))
        of, noted = self._configuration, state.args.espalier_base
        store = FullStore(of.volume, of.base, noted=noted, tied=tied)
        return FullServing(state, store, self._gate)

    def _live(self) -> Serving:
        if self._serving is None:
            raise RuntimeError("a request came in before the application's lifespan began")
        return self._serving

    async def _health(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                await self._live().check_health()
        except Exception:
            # Anybody may ask, so the error is for the log alone.
            logger.exception("the engine is not healthy")
            return guard.problem_response(
                HTTPStatus.SERVICE_UNAVAILABLE,
                Problem(
                    reason="EngineDead",
                    detail="the engine is not healthy; the sampler's log says why",
                    remedy="the kubelet restarts it",
                ),
            )
        return JSONResponse({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        if not self._live().ready:
            return guard.problem_response(
                HTTPStatus.SERVICE_UNAVAILABLE,
                Problem(
                    reason="AwaitingServe",
                    detail="the operator has not yet said which adapters to serve",
                    remedy=f"the operator posts to {guard.SERVE} once the pod runs",
                ),
            )
        return await self._health(request)

    async def _get(self, request: Request) -> Response:
        return JSONResponse((await self._live().served()).model_dump())

    async def _post(self, request: Request) -> Response:
        try:
            wanted = ServeRequest.model_validate_json(await request.body())
        except ValidationError as error:
            problem = Problem(
                reason="InvalidRequest",
                detail="; ".join(f"{item['loc']}: {item['msg']}" for item in error.errors()),
                remedy='send {"adapters": ["<slug>@<12 hex>", ...]}',
            )
            return guard.problem_response(HTTPStatus.UNPROCESSABLE_ENTITY, problem)
        try:
            served = await self._live().serve(wanted.adapters)
        except ServeError as error:
            return guard.problem_response(error.status, error.problem)
        logger.info("Serving %s", ", ".join(served.adapters) or names.BASE)
        return JSONResponse(served.model_dump())


class GuardedControl(guard.Authentication):
    """Control behind Authentication, as the one middleware that vLLM is told to add."""

    def __init__(self, app: ASGIApp) -> None:
        configuration = settings.SamplerSettings.read(os.environ)
        super().__init__(ControlRoutes(app, configuration), configuration)
        if spans_endpoint(os.environ):
            # vLLM has set OpenTelemetry up by now.
            spans.join()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Guard, in a span of the caller's trace."""
        if scope["type"] == "http":
            await asgi.spanned(super().__call__, scope, receive, send, guard.ROUTES)
        else:
            await super().__call__(scope, receive, send)
