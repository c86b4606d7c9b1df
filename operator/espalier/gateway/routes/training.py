"""Train routes: pass commands to the trainer; hold optim-step until the head serves its result."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import aiohttp
from aiohttp import StreamReader, web

from espalier.api.wire.headers import (
    CHECKPOINT_DIGEST,
    CLIENT,
    IDEMPOTENCY_KEY,
    PROMOTED_AFTER,
    PROMOTION,
    TERM,
)
from espalier.api.wire.step import OptimStepResult
from espalier.core.api_keys import Scope
from espalier.core.idempotency import read_key
from espalier.gateway.access.answer_writer import write_answer
from espalier.gateway.access.audit import ACT, audited
from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.access.byte_budget import Hold
from espalier.gateway.access.callers import Callers
from espalier.gateway.access.pod_answers import read_held
from espalier.gateway.access.pod_calls import PodCalls
from espalier.gateway.access.quotas import Quotas
from espalier.gateway.access.request_body import late
from espalier.gateway.context import (
    ARRIVED,
    HELD_SECONDS,
    REQUEST_ID,
    UPSTREAM_SECONDS,
    requested_slug,
)
from espalier.gateway.hud.delivery import (
    COMMANDS,
    DeliveryReports,
    client_name,
    is_unkeyed,
    write_until_closed,
)
from espalier.gateway.hud.traces import TraceRoutes
from espalier.gateway.problems import RefusalError, not_ready, with_remedy
from espalier.gateway.routes.fresh_checkpoint import promotion
from espalier.gateway.routes.trainer_lookup import TrainerLookup
from espalier.gateway.routes.training_access import TrainingAccess, binding, declared_header
from espalier.gateway.world.pod_addresses import NotReadyReason, PodAddress, why_none_ready
from espalier.gateway.world.turn import live_term
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import TRAINER, NamespacedName
from espalier.podclient import PodFaultError
from espalier.telemetry import spans
from espalier.telemetry.http_server import X_REQUEST_ID
from espalier.untrusted import UnreadableError, read_model

READS = frozenset({"batch", "declared", "losses", "state"})
# What is asked again, and is not worth a wait for a trainer that starts.
_ASKED_AGAIN = ("batch", "state")
PROMOTION_SECONDS = 60.0
TRAINER_SECONDS = 600.0
# HUD's client hears nothing for 600 s, gives up, and does not know why.
ANSWER_SECONDS = 590.0
CONNECT_SECONDS = 5.0
# The longest pause between two parts of a body.
PART_SECONDS = 60.0

# Not its length or encoding: the connection to the trainer frames the body itself, part by part.
_PASSED_ON = ("Content-Type", IDEMPOTENCY_KEY, TERM)
_PASSED_BACK = ("Content-Type", "Retry-After", CHECKPOINT_DIGEST, TERM)
# Where a run binds its client to nothing.
_NOTHING = "{}"
_SEND_AGAIN = (
    f"Send it again, with the same {IDEMPOTENCY_KEY} if it has one: a command whose answer was "
    "lost is applied once"
)


@dataclass(frozen=True)
class _CommandAnswer:
    """The trainer's answer, with the headers for the client."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    key: str = ""


@dataclass(frozen=True)
class _Command:
    """One request and the trainer that it goes to; ``until`` is when its client gives up."""

    request: web.Request
    user: User
    model: NamespacedName
    trainer: PodAddress
    until: float

    @property
    def name(self) -> str:
        return str(self.request.match_info["command"])

    def within(self, seconds: float) -> float:
        """So many seconds, or those until its client gives up; never 0, which sets no limit."""
        return max(min(seconds, self.until - time.monotonic()), 0.001)


class TrainingRoutes:
    """Handler of ``/v1/models/{slug}/train/{command}``."""

    def __init__(
        self,
        *,
        callers: Callers,
        watch: WorldWatch,
        auth: Authenticator,
        pods: PodCalls,
        traces: TraceRoutes,
        trainers: TrainerLookup,
        quotas: Quotas,
    ) -> None:
        self._callers = callers
        self._watch = watch
        self._access = TrainingAccess(watch, auth)
        self._pods = pods
        self._trainers = trainers
        self._quotas = quotas
        self._traces = traces
        self._deliveries = DeliveryReports(pods.session, pods.tokens)

    @audited("Train")
    async def handle(self, request: web.Request) -> web.Response:
        """Sends the command to the trainer, and the answer back with one more header."""
        command = request.match_info["command"]
        # A step has many commands before it. One that is refused is told whatever it is.
        act = request[ACT]
        act.told, act.target, act.after = command == "optim-step", requested_slug(request), command
        scopes: tuple[Scope, ...] = ("train", "read") if command in READS else ("train",)
        user = await self._callers.caller(request, *scopes)
        model = await self._callers.model(user, requested_slug(request))
        act.of("TrainableModel", model, after=command)
        await self._access.require(user, model)
        if command == "declared":
            bound = binding(self._watch.world, model)
            return web.Response(text=bound or _NOTHING, content_type="application/json")
        # A client that sends keys, or reads the state, repeats its calls. HUD's client does not.
        wait = IDEMPOTENCY_KEY not in request.headers and command not in _ASKED_AGAIN
        # Its patience began before its rights were looked up.
        began, seconds = request[ARRIVED], HELD_SECONDS if wait else 0.0
        until = began + ANSWER_SECONDS if wait else math.inf
        # A part of the time for room, so that some is left for a trainer that starts.
        async with self._quotas.train(user, model, seconds / 2):
            left = max(began + seconds - time.monotonic(), 0.0)
            trainer = await self._trainers.ready(model, left)
            return await self._command(_Command(request, user, model, trainer, until))

    async def _command(self, sent: _Command) -> web.Response:
        request, model, trainer = sent.request, sent.model, sent.trainer
        if sent.name in COMMANDS:
            await self._traces.hand_over(model)
        with self._pods.answers.hold() as hold:
            started = time.perf_counter()
            try:
                answer = await self._pass_on(sent, hold)
            finally:
                request[UPSTREAM_SECONDS] = time.perf_counter() - started
            response = await self._response(sent, answer)
            if not answer.key:
                await write_answer(request, response)
                return response
            delivered = await write_until_closed(request, response)
        if delivered:
            await self._deliveries.send(model, trainer, answer.key)
        return response

    async def _response(self, command: _Command, answer: _CommandAnswer) -> web.Response:
        body = answer.body
        if answer.status >= 400 and is_unkeyed(command.request):
            body = with_remedy(body)
        headers = dict(answer.headers)
        if command.name == "optim-step" and answer.status == 200:
            began = time.perf_counter()
            headers[PROMOTION] = await self._promoted(command, answer)
            headers[PROMOTED_AFTER] = f"{time.perf_counter() - began:.3f}"
        return web.Response(body=body, status=answer.status, headers=headers)

    async def _pass_on(self, command: _Command, hold: Hold) -> _CommandAnswer:
        request, model = command.request, command.model
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        headers[X_REQUEST_ID] = request[REQUEST_ID]
        if is_unkeyed(request):
            headers[CLIENT] = client_name(command.user)
        headers |= declared_header(self._watch.world, model)
        headers |= self._pods.tokens.header(
            model, command.trainer, live_term(self._watch.world, model)
        )
        sent = _Parts(request.content)
        seconds = command.within(TRAINER_SECONDS)
        try:
            async with self._pods.session.request(
                request.method,
                f"http://{command.trainer.address}/train/{command.name}",
                # Streamed: a batch of long rollouts is large, and only the trainer reads it.
                data=aiter(sent) if request.method == "POST" else None,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS),
            ) as answer:
                kept = {
                    name: value
                    for name in _PASSED_BACK
                    if _plain(value := answer.headers.get(name, ""))
                }
                key = answer.headers.get(IDEMPOTENCY_KEY, "")
                body = await read_held(answer, hold)
                return _CommandAnswer(answer.status, kept, body, key if read_key(key) else "")
        except aiohttp.ClientError as error:
            if sent.late:
                raise late(PART_SECONDS) from error
            pods = self._watch.world.pods_of(model, TRAINER)
            waiting = why_none_ready(pods) or NotReadyReason(
                "TrainerUnreachable", "the pod is ready"
            )
            raise not_ready(
                waiting.reason,
                f"the connection to the trainer of {model} is lost: {error}; {waiting.message}",
                _SEND_AGAIN,
                from_pod=True,
            ) from error
        except TimeoutError as error:
            raise RefusalError(
                504,
                "TrainerTimeout",
                f"the trainer of {model} did not answer within {seconds:.0f} s, and goes on",
                _SEND_AGAIN,
            ) from error

    async def _promoted(self, command: _Command, answer: _CommandAnswer) -> str:
        """Served, Pinned, Gated, or Timeout when none of these came true in time."""
        digest, address = answer.headers.get(CHECKPOINT_DIGEST), command.trainer.address
        try:
            step = read_model(OptimStepResult, answer.body)
        except UnreadableError as error:
            raise PodFaultError(
                "PodAnswerUnknown", address, f"answers optim-step with no step: {error}"
            ) from error
        if digest is None:
            raise PodFaultError(
                "PodAnswerUnknown", address, f"answers optim-step without {CHECKPOINT_DIGEST}"
            )
        checkpoint = step.checkpoint_id
        spans.note({spans.STEP: step.step, spans.CHECKPOINT: checkpoint})
        promoted = await self._watch.wait_for(
            lambda world: promotion(world, command.model, checkpoint, digest),
            command.within(PROMOTION_SECONDS),
        )
        return promoted or "Timeout"


class _Parts:
    """A request's body, part by part; ``late`` once the client has stopped sending."""

    def __init__(self, content: StreamReader) -> None:
        self._content = content
        self.late = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(PART_SECONDS):
                    part = await self._content.readany()
            except TimeoutError:
                self.late = True
                raise
            if not part:
                return
            yield part


def _plain(value: str) -> bool:
    return bool(value) and value.isascii() and value.isprintable()
