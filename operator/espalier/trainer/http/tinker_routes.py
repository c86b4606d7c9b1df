"""The routes of Tinker's clients: accept a command at once, and tell its result when there is one.

A task works through the inbox while the trainer runs. What it has answered is on disk before
anybody is told, so a client that polls again after any crash gets the same result.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Protocol, TypeVar, cast, get_args

from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from espalier.api.wire.headers import IDEMPOTENCY_KEY
from espalier.api.wire.problem import Problem
from espalier.core.idempotency import read_key
from espalier.telemetry import spans
from espalier.tinker.bodies import LoadWeights, OptimStep, Pending
from espalier.tinker.commands import COMMANDS, RESULTS, CommandKind
from espalier.trainer.batch.limits import Limits
from espalier.trainer.engine import client_batches, explicit_command, queue
from espalier.trainer.engine.engine import Engine
from espalier.trainer.engine.queued_commands import SAVE
from espalier.trainer.http.one_client import OneClient, Tenure
from espalier.trainer.http.requests import declared_of, first_fault, number
from espalier.trainer.http.tinker_results import KINDS, as_json, result
from espalier.trainer.problems import CommandError, invalid
from espalier.trainer.volume.command_log import CommandLog, Key
from espalier.trainer.volume.inbox import Arrival
from espalier.trainer.volume.log_records import TINKER_GRADIENTS

logger = logging.getLogger(__name__)

MAX_WAIT_SECONDS = 30.0
# How soon a command that a passing fault holds up is tried again.
AGAIN_SECONDS = 2.0
# The SDK sends a submission again for 5 minutes; after that it does not come.
GAP_SECONDS = 330.0
TRACES_MOST = 4096

T = TypeVar("T")
_BODIES: dict[str, TypeAdapter[Any]] = {
    "optim-step": TypeAdapter(OptimStep),
    "save-weights": SAVE,
    "load-weights": TypeAdapter(LoadWeights),
}


class OnEngine(Protocol):
    """Runs work on the engine's thread."""

    def __call__(self, what: str, work: Callable[[], T], /) -> Awaitable[T]:
        """The result of the work, which is called ``what``."""


class TinkerRoutes:
    """Routes over the inbox of an engine, and the task that works through it."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        on_engine: OnEngine,
        body: Callable[[web.Request], Awaitable[bytes]],
        term: Callable[[web.Request], int | None],
        *,
        client: OneClient,
        gap_seconds: float = GAP_SECONDS,
    ) -> None:
        self._engine = engine
        self._on_engine = on_engine
        self._body = body
        self._term = term
        self._gap_seconds = gap_seconds
        self._arrived = asyncio.Event()
        self._answers: dict[Key, asyncio.Event] = {}
        self._last: dict[str, float] = {}
        # The traces that commands which wait came in; forgotten with the process.
        self._traces: dict[Key, Context] = {}
        self._client = client
        # Of commands that wait; a trainer that starts again has none.
        self._tenures: dict[Key, Tenure] = {}
        self._held_up: Problem | None = None
        self._task: asyncio.Task[None] | None = None

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Adds the routes."""
        router.add_post(f"{COMMANDS}/{{kind}}", self._accept)
        router.add_get(f"{RESULTS}/{{model}}/{{seq}}", self._result)

    def start(self) -> None:
        """Begins to work through the inbox, where the last trainer left it."""
        self._task = asyncio.create_task(self._work())

    def wake(self) -> None:
        """Looks into the inbox again: what held it up may be over."""
        self._arrived.set()

    async def stop(self) -> None:
        """Leaves what is not yet applied in the inbox."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _accept(self, request: web.Request) -> web.Response:
        kind = request.match_info["kind"]
        if kind not in get_args(CommandKind):
            raise web.HTTPNotFound
        engine, term, given = self._engine(), self._term(request), declared_of(request)
        key = _named(request)
        content = await self._body(request)
        arrival = Arrival(
            key,
            KINDS[cast(CommandKind, kind)],
            content,
            term,
            given.model_dump_json() if given else "",
        )
        log, limits = engine.state.log, engine.state.compute.limits
        refused, trains = await asyncio.to_thread(_checked, log, limits, arrival)
        if trains and refused is None:
            refused = self._claim(key, engine.assigned_run())
        if spans.recording():
            self._traces[key] = copy_context()
            if len(self._traces) > TRACES_MOST:
                # Of one that was sent again after its answer.
                del self._traces[next(iter(self._traces))]
        try:
            await asyncio.to_thread(_keep, log, arrival, refused)
        except Exception:
            self._end(key, applied=False)
            raise
        self._last[key.session] = time.monotonic()
        self.wake()
        if refused is not None:
            raise refused
        return web.Response(status=202, text="{}", content_type="application/json")

    def _claim(self, key: Key, run: str) -> CommandError | None:
        """Takes the model for a command until its end; why not, where another client trains it."""
        try:
            # One that is sent twice at the same time claims once.
            if key not in self._tenures:
                self._tenures[key] = self._client.claim(key.session, run)
        except CommandError as error:
            return error
        return None

    def _end(self, key: Key, *, applied: bool) -> None:
        """A command was applied, or failed."""
        if (tenure := self._tenures.pop(key, None)) is not None:
            self._client.end(tenure, applied=applied)

    async def _result(self, request: web.Request) -> web.Response:
        engine = self._engine()
        key = _key(f"{request.match_info['model']}/{request.match_info['seq']}")
        wait = min(number(request, "wait", 0), MAX_WAIT_SECONDS)
        with self._client.busy(key.session):
            return await self._answered(engine, key, wait)

    async def _answered(self, engine: Engine, key: Key, wait: float) -> web.Response:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            # Made before the look, so that an answer in between is not missed.
            answered = self._answers.setdefault(key, asyncio.Event())
            found = await asyncio.to_thread(result, engine, key)
            if found is not None:
                applied = await asyncio.to_thread(queue.applied, engine.state.log, key)
                if applied is not None:
                    # The turn that logged it may not have ended yet.
                    self._end(key, applied=applied)
                self._answers.pop(key, None)
                return found
            try:
                async with asyncio.timeout_at(deadline):
                    await answered.wait()
            except TimeoutError:
                return await asyncio.to_thread(self._pending, engine.state.log, key)

    def _pending(self, log: CommandLog, key: Key) -> web.Response:
        why = Pending(reason="Queued", detail="commands of this model that came before are applied")
        for missing in log.inbox.gaps():
            if missing.session == key.session:
                why = Pending(
                    reason="NumberMissing", detail=f"seq_id {missing.seq} has not yet arrived"
                )
        if (held := self._held_up) is not None:
            why = Pending(reason=held.reason, detail=held.text)
        return as_json(why, status=408)

    async def _work(self) -> None:
        engine = self._engine()
        while True:
            self._arrived.clear()
            began = time.time_ns()
            try:
                turn = await self._on_engine("tinker", lambda: queue.take_turn(engine))
                self._held_up = turn.held_up
                if turn.answered is not None:
                    self._tell(turn.answered, began, applied=turn.applied)
                    continue
                wait = AGAIN_SECONDS if turn.held_up is not None else await self._gaps(engine)
            except Exception:
                logger.exception("the inbox cannot be read")
                wait = AGAIN_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._arrived.wait()

    async def _gaps(self, engine: Engine) -> float | None:
        """Gives up numbers that have not come in time; the seconds until the next deadline."""
        now, wait = time.monotonic(), None
        gaps = await asyncio.to_thread(engine.state.log.inbox.gaps)
        if gaps and not engine.state.confirmed:
            return AGAIN_SECONDS
        for missing in gaps:
            left = self._last.setdefault(missing.session, now) + self._gap_seconds - now
            if left > 0:
                wait = left if wait is None else min(wait, left)
                continue
            given_up = partial(queue.give_up, engine, missing, self._gap_seconds)
            for key in await self._on_engine("tinker", given_up):
                self._tell(key)
        return wait

    def _tell(self, key: Key, began: int | None = None, *, applied: bool = False) -> None:
        """Wakes those who wait for a command's result, on which work began at a time in ns."""
        self._end(key, applied=applied)
        trace = self._traces.pop(key, None)
        if trace is not None and began is not None:
            trace.run(spans.past, "engine tinker", began)
        answered = self._answers.pop(key, None)
        if answered is not None:
            answered.set()


def _named(request: web.Request) -> Key:
    if IDEMPOTENCY_KEY not in request.headers:
        raise invalid(IDEMPOTENCY_KEY, "is missing", "send <model_id>/<seq_id>")
    return _key(request.headers[IDEMPOTENCY_KEY])


def _key(text: str) -> Key:
    found = read_key(text)
    if found is None or found[1] < 1:
        raise invalid(
            "seq_id", f"{text[:200]!r} is not <model_id>/<seq_id>, with a seq_id from 1", ""
        )
    return Key(*found)


def _checked(log: CommandLog, limits: Limits, arrival: Arrival) -> tuple[CommandError | None, bool]:
    """Why a command cannot be applied, and whether it trains; one that is known has no effect."""
    known = log.inbox.find(arrival.key) is not None or log.find(arrival.key) is not None
    try:
        trains = _trains(limits, arrival) and not known
        if trains:
            client_batches.refuse_beside_others(log)
        return None, trains
    except CommandError as error:
        return error, False


def _keep(log: CommandLog, arrival: Arrival, refusal: CommandError | None) -> None:
    """Keeps a command; a refused one uses up its number."""
    problem = refusal.problem.model_dump_json() if refusal else ""
    log.inbox.accept(
        Arrival(arrival.key, arrival.kind, arrival.body, arrival.term, arrival.declared, problem)
    )


def _trains(limits: Limits, arrival: Arrival) -> bool:
    """Whether a command changes gradients or weights; raises 422 for one that cannot be applied."""
    trains = arrival.kind != "save-weights"
    if arrival.kind == TINKER_GRADIENTS:
        batch, _ = explicit_command.parse(arrival.body, limits)
        named, trains = Key(batch.model_id, batch.seq), not batch.forward_only
    else:
        try:
            body = _BODIES[arrival.kind].validate_json(arrival.body)
        except ValidationError as error:
            raise first_fault(error) from error
        named = Key(body.model_id, body.seq_id)
    if named != arrival.key:
        raise invalid(
            "seq_id", f"the body is {named.seq} of {named.session}, and the key {arrival.key}", ""
        )
    return trains
