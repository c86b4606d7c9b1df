"""The trainer's HTTP routes: validation, and one queue to the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, TypeVar

from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from espalier import identity
from espalier.api.wire.base import Wire
from espalier.api.wire.batch_left import Held
from espalier.api.wire.gradients import (
    BackwardRequest,
    ForwardBackwardRequest,
    ForwardRequest,
    LossList,
    TrajectoriesRequest,
)
from espalier.api.wire.headers import CHECKPOINT_DIGEST, IDEMPOTENCY_KEY
from espalier.api.wire.step import OptimStepRequest
from espalier.api.wire.trainer import Assignment, Usage
from espalier.telemetry import http_server, spans
from espalier.trainer import prometheus
from espalier.trainer.batch.losses import DEFAULTS
from espalier.trainer.engine import measurements, unkeyed
from espalier.trainer.engine.commands import Answer, Command, Empty, Sent
from espalier.trainer.engine.engine import Engine
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.engine.unkeyed import Unkeyed
from espalier.trainer.http import trace_routes
from espalier.trainer.http.door import METRICS, Door, Handler, answer_problem, named_term
from espalier.trainer.http.feed import CommitFeed, Snapshot
from espalier.trainer.http.file_routes import FileRoutes
from espalier.trainer.http.idle_time import Calls
from espalier.trainer.http.one_client import OTHERS, OneClient
from espalier.trainer.http.requests import client_of, declared_of, key_of, number, parse
from espalier.trainer.http.tinker_routes import GAP_SECONDS, TinkerRoutes
from espalier.trainer.http.watchdog import Watchdog
from espalier.trainer.problems import CommandError
from espalier.trainer.settings import MAX_BODY_BYTES, STUCK_SECONDS
from espalier.trainer.volume.command_log import Kind
from espalier.trainer.volume.trace_store import Traces

MAX_WAIT_SECONDS = 30.0
# The report of a delivery follows the answer, and the next command may overtake the report.
DELIVERY_SECONDS = 2.0
# A connection is closed after this long without a whole request head.
HEAD_SECONDS = 75.0
# aiohttp's options: bodies are never inflated, whatever a client announces.
SERVER: dict[str, Any] = {"auto_decompress": False, "keepalive_timeout": HEAD_SECONDS}
T = TypeVar("T")


class Service:
    """Routes over an engine that may still be loading. The engine works on one thread."""

    def __init__(
        self,
        keys: identity.TrustedKeys,
        audience: str,
        max_body_bytes: int = MAX_BODY_BYTES,
        watchdog: Watchdog | None = None,
        gap_seconds: float = GAP_SECONDS,
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._engine: Engine | None = None
        self._watchdog = watchdog or Watchdog(STUCK_SECONDS)
        self._traces: Traces | None = None
        self._delivered = asyncio.Event()
        self._calls = Calls()
        self._client = OneClient(time.monotonic)
        self._door = Door(keys, audience, max_body_bytes, self._calls)
        self._tinker = TinkerRoutes(
            self._ready_engine,
            self._counted,
            self._door.body,
            named_term,
            client=self._client,
            gap_seconds=gap_seconds,
        )
        self.feed = CommitFeed(asyncio.get_running_loop())

    async def start(self, make: Callable[[Callable[[TrainingState], None]], Engine]) -> None:
        """Makes the engine on its thread; until then train routes answer 503 Loading."""
        loop = asyncio.get_running_loop()
        engine = await loop.run_in_executor(self._worker, make, self._published)
        self._traces = engine.state.traces
        self._engine = engine
        # Time spent loading does not count as quiet.
        self._calls.touch()
        self._tinker.start()

    async def stop(self, _app: web.Application) -> None:
        """Ends what works by itself."""
        await self._tinker.stop()

    def app(self) -> web.Application:
        """The routes of the architecture page."""
        app = web.Application(
            middlewares=[
                *http_server.middlewares(only_carried_on=True),
                self._door.answer_problems,
                self._door.authenticate,
            ],
            client_max_size=self._max_body_bytes,
        )
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get(METRICS, _metrics)
        app.router.add_post("/assign", self._assign)
        app.router.add_get("/commits", self._commits)
        app.router.add_get("/usage", self._usage)
        app.router.add_get("/train/losses", self._losses)
        app.router.add_get("/train/state", self._state)
        app.router.add_get("/train/batch", self._batch)
        app.router.add_post("/train/delivered", self._deliver)
        trace_routes.add_to(app.router, self._kept, self._door.body)
        self._tinker.add_to(app.router)
        FileRoutes(self._ready_engine).add_to(app.router)
        app.on_cleanup.append(self.stop)
        kinds: dict[Kind, type[Wire]] = {
            "forward-backward": ForwardBackwardRequest,
            "forward": ForwardRequest,
            "backward": BackwardRequest,
            "zero-grad": Empty,
            "optim-step": OptimStepRequest,
        }
        for kind, body in kinds.items():
            app.router.add_post(f"/train/{kind}", self._command(kind, body))
        return app

    def _published(self, state: TrainingState) -> None:
        report = state.report() if state.assigned is not None else None
        warnings = state.compute.warnings
        self.feed.publish(Snapshot(report, tuple(state.commits), state.trouble, warnings))

    def _ready_engine(self) -> Engine:
        if self._engine is None:
            raise CommandError(
                503, "Loading", "the trainer is loading the base model", "wait for /readyz"
            )
        return self._engine

    async def _healthz(self, _request: web.Request) -> web.Response:
        """503 once a command is stuck: the kubelet then restarts the trainer."""
        stuck = self._watchdog.stuck()
        return answer_problem(503, stuck) if stuck else web.Response(text="ok")

    async def _readyz(self, _request: web.Request) -> web.Response:
        self._ready_engine()
        snapshot = self.feed.snapshot
        problems = [snapshot.problem] if snapshot.problem else []
        # Ready despite a problem: only a command that succeeds shows that a fault is over.
        lines = [f"{p.reason}: {p.text}" for p in (*problems, *snapshot.warnings)]
        return web.Response(text="\n".join(("ok", *lines)))

    async def _losses(self, _request: web.Request) -> web.Response:
        return _json(LossList(losses=list(DEFAULTS)))

    async def _state(self, _request: web.Request) -> web.Response:
        engine = self._ready_engine()
        state = self.feed.snapshot.state
        if state is None:
            engine.state.assignment()
            raise CommandError(503, "Loading", "the first assignment is being applied")
        return _json(state)

    async def _batch(self, _request: web.Request) -> web.Response:
        engine = self._ready_engine()
        return _json(Held(batch=await self._on_engine("batch", engine.state.batch_left)))

    async def _assign(self, request: web.Request) -> web.Response:
        wanted = parse(Assignment, await self._door.body(request))
        engine = self._ready_engine()
        state = await self._on_engine("assign", lambda: engine.assign(wanted))
        self._tinker.wake()
        return _json(state)

    async def _commits(self, request: web.Request) -> web.Response:
        self._ready_engine()
        after = number(request, "after", 0, whole=True)
        wait = min(number(request, "wait", 0), MAX_WAIT_SECONDS)
        return _json(await self.feed.page(int(after), wait))

    async def _usage(self, _request: web.Request) -> web.Response:
        return _json(Usage(quiet_seconds=self._calls.quiet_seconds))

    def _command(self, kind: Kind, body: type[Wire]) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            engine = self._ready_engine()
            content = await self._door.body(request)
            parsed: Wire = await asyncio.to_thread(parse, body, content or b"{}")
            measurements.check(parsed, engine.state.model)
            if isinstance(parsed, TrajectoriesRequest):
                parsed = await asyncio.to_thread(self._kept().resolve, parsed)
            client = client_of(request)
            sent = Sent(kind, parsed, named_term(request), declared_of(request))
            with self._client.busy(OTHERS):
                if IDEMPOTENCY_KEY not in request.headers and client:
                    return await self._unkeyed(engine, Unkeyed(client, sent))
                work = partial(engine.execute, Command(key_of(request), sent), self._admit)
                answer = await self._on_engine(kind, work)
            self._note_position()
            return _answer(answer)

        return handle

    def _admit(self) -> AbstractContextManager[None]:
        """Takes the model for clients that are not Tinker's; 409 where one of those has it."""
        return self._client.training(OTHERS, self._ready_engine().assigned_run())

    def _note_position(self) -> None:
        """Says in the span of a command where training is after it."""
        if (state := self.feed.snapshot.state) is not None:
            spans.note({spans.STEP: state.step, spans.CHECKPOINT: state.checkpoint})

    async def _on_engine(self, what: str, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        with prometheus.QUEUE.track_inprogress():
            watched = spans.here(partial(self._watched, what, work))
            return await loop.run_in_executor(self._worker, watched)

    def _watched(self, what: str, work: Callable[[], T]) -> T:
        # Without the wait for the thread, which is what the request's own span has beyond it.
        with spans.part(f"engine {what}"), prometheus.COMMANDS.labels(what).time():
            return self._watchdog.run(what, work)

    async def _counted(self, what: str, work: Callable[[], T]) -> T:
        """As ``_on_engine``; a trainer that works through its inbox is not idle."""
        with self._calls.one():
            return await self._on_engine(what, work)

    async def _unkeyed(self, engine: Engine, command: Unkeyed) -> web.Response:
        """Applies a command without a key; a possible resend waits for the report of a delivery."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DELIVERY_SECONDS
        while True:
            delivered = self._delivered
            waited = loop.time() >= deadline
            done = await self._on_engine(
                command.sent.kind,
                partial(unkeyed.execute, engine, command, waited=waited, admit=self._admit),
            )
            if done is not None:
                self._note_position()
                key, answer = done
                response = _answer(answer)
                response.headers[IDEMPOTENCY_KEY] = f"{key.session}/{key.seq}"
                return response
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await delivered.wait()

    def _kept(self) -> Traces:
        self._ready_engine()
        assert self._traces is not None
        return self._traces

    async def _deliver(self, request: web.Request) -> web.Response:
        engine = self._ready_engine()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._worker, engine.state.log.mark_delivered, key_of(request))
        # A fresh event for each report: later waiters wait for the next one.
        self._delivered.set()
        self._delivered = asyncio.Event()
        return web.Response(status=204)


def _answer(answer: Answer) -> web.Response:
    headers = {CHECKPOINT_DIGEST: answer.digest} if answer.digest else {}
    return web.Response(
        status=answer.status, text=answer.body, content_type="application/json", headers=headers
    )


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})


def _json(body: Wire) -> web.Response:
    return web.Response(text=body.model_dump_json(), content_type="application/json")
