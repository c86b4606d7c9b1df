"""What a rollout pod serves: loads adapters through vLLM's own registry and reads them back.

A pod is ready once it has fulfilled a serve request, so a restarted one is ready only when it holds
what the heads of its model say.
"""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm import SamplingParams
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest

from espalier.api.wire import Problem, Served, ServeRequest
from espalier.core import names
from espalier.rollout import auth, continuation
from espalier.rollout.resolver import UnservableAdapterError

logger = init_logger("vllm.espalier.serve")

LOAD_SECONDS = 60.0
WARM_UP_SECONDS = 120.0
HEALTH_SECONDS = 10.0


class LiveAdapters(dict[str, LoRARequest]):
    """vLLM's registry of adapters, minus those whose directory is gone.

    vLLM reads an evicted adapter from disk again in the middle of a step, and its engine dies when
    the directory has been deleted. A name that is forgotten here is resolved anew: a 404.
    """

    def __contains__(self, name: object) -> bool:
        if not super().__contains__(name):
            return False
        if Path(self[str(name)].lora_path).is_dir():
            return True
        del self[str(name)]
        return False


class ServeError(Exception):
    """The request cannot be fulfilled; what was served before stays."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.status = status
        self.problem = problem


class Serving:
    """The adapters that this pod was told to serve. ``state`` is vLLM's application state."""

    def __init__(self, state: Any) -> None:
        self._models = state.openai_serving_models
        self._engine = state.engine_client
        self._most = state.vllm_config.lora_config.max_loras
        self._lock = asyncio.Lock()
        self._told: tuple[str, ...] | None = None
        self._models.lora_requests = LiveAdapters(self._models.lora_requests)

    @property
    def ready(self) -> bool:
        """Whether a serve request has been fulfilled since this process began."""
        return self._told is not None

    async def serve(self, wanted: list[str]) -> Served:
        """Load what is not loaded, read all of it back; raises ServeError."""
        adapters = [name for name in dict.fromkeys(wanted) if name != names.BASE]
        if len(adapters) > self._most:
            raise ServeError(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                Problem(
                    reason="TooManyAdapters",
                    detail=f"{len(adapters)} adapters asked for, this pod serves {self._most}",
                    remedy="serve fewer heads of the model or raise ESPALIER_MAX_ADAPTERS",
                ),
            )
        try:
            async with asyncio.timeout(LOAD_SECONDS), self._lock:
                requests = [await self._resolve(name) for name in adapters]
                missing = await self._missing(requests)
                for request in missing:
                    await self._engine.add_lora(request)
                lost = await self._missing(requests) if missing else []
        except TimeoutError:
            raise ServeError(
                HTTPStatus.GATEWAY_TIMEOUT,
                Problem(
                    reason="LoadTimeout",
                    detail=f"the engine took more than {LOAD_SECONDS:.0f} s to load {adapters}",
                    remedy="send the request again; the engine may be busy",
                ),
            ) from None
        if lost:
            raise ServeError(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                Problem(
                    reason="NotReadBack",
                    detail=f"the engine does not list {[item.lora_name for item in lost]}",
                    remedy="send the request again",
                ),
            )
        self._told = tuple(adapters)
        return Served(adapters=adapters, ready=True)

    async def served(self) -> Served:
        """What of the last request is loaded now; not ready when an adapter is missing."""
        told = self._told or ()
        requests = [self._models.lora_requests[n] for n in told if n in self._models.lora_requests]
        missing = {request.lora_name for request in await self._missing(requests)}
        held = [item.lora_name for item in requests if item.lora_name not in missing]
        return Served(adapters=held, ready=self.ready and len(held) == len(told))

    async def check_health(self) -> None:
        """Raise if vLLM's engine is dead."""
        await self._engine.check_health()

    async def warm_up(self) -> None:
        """Sample one token, so that the first caller does not pay for lazy initialisation."""
        started = time.monotonic()
        async with asyncio.timeout(WARM_UP_SECONDS):
            async for _ in self._engine.generate(
                {"prompt_token_ids": [0]},
                SamplingParams(max_tokens=1, temperature=1.0, logprobs=1),
                request_id="warm-up",
            ):
                pass
        logger.info("Warmed up in %.1f s", time.monotonic() - started)

    async def _resolve(self, name: str) -> LoRARequest:
        try:
            found = await self._models.resolve_lora(name)
        except UnservableAdapterError as error:
            raise ServeError(HTTPStatus.UNPROCESSABLE_ENTITY, error.problem) from error
        if isinstance(found, LoRARequest):
            return found
        raise ServeError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            Problem(
                reason="NotLoadable",
                detail=found.error.message,
                remedy="vLLM refuses the adapter's tensors: check its target modules",
            ),
        )

    async def _missing(self, requests: list[LoRARequest]) -> list[LoRARequest]:
        loaded = await self._engine.list_loras()
        return [request for request in requests if request.lora_int_id not in loaded]


class Control:
    """ASGI middleware that answers the probes and the operator's route, and passes on the rest."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._serving: Serving | None = None
        self._router = Router(
            [
                Route(auth.HEALTH, self._health, methods=["GET"]),
                Route(auth.READY, self._ready, methods=["GET"]),
                Route(auth.SERVE, self._get, methods=["GET"]),
                Route(auth.SERVE, self._post, methods=["POST"]),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Set up at start, before the first connection is accepted; then route."""
        if scope["type"] == "lifespan":
            self._serving = Serving(scope["app"].state)
            continuation.install(scope["app"].state.openai_serving_chat)
            await self._serving.warm_up()
        ours = scope["type"] == "http" and scope["path"] in (*auth.PROBES, auth.SERVE)
        await (self._router if ours else self._app)(scope, receive, send)

    def _live(self) -> Serving:
        if self._serving is None:
            raise RuntimeError("a request came in before the application's lifespan began")
        return self._serving

    async def _health(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                await self._live().check_health()
        except Exception as error:
            return auth.problem_response(
                HTTPStatus.SERVICE_UNAVAILABLE,
                Problem(reason="EngineDead", detail=str(error), remedy="the kubelet restarts it"),
            )
        return JSONResponse({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        if not self._live().ready:
            return auth.problem_response(
                HTTPStatus.SERVICE_UNAVAILABLE,
                Problem(
                    reason="AwaitingServe",
                    detail="the operator has not yet said which adapters to serve",
                    remedy=f"the operator posts to {auth.SERVE} once the pod runs",
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
            return auth.problem_response(HTTPStatus.UNPROCESSABLE_ENTITY, problem)
        try:
            served = await self._live().serve(wanted.adapters)
        except ServeError as error:
            return auth.problem_response(error.status, error.problem)
        logger.info("Serving %s", ", ".join(served.adapters) or names.BASE)
        return JSONResponse(served.model_dump())


class GuardedControl(auth.Authentication):
    """Control behind Authentication, as the one middleware that vLLM is told to add."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(Control(app))
