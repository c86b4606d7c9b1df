"""Train routes: pass commands to the trainer; hold optim-step until the head serves its result."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import aiohttp
from aiohttp import web

from espalier.api.wire import CLIENT, EPOCH, IDEMPOTENCY_KEY, PROMOTION
from espalier.gateway import delivery
from espalier.gateway.auth import User
from espalier.gateway.pods import Pod, Waiting, why_none_ready
from espalier.gateway.problems import RefusalError, not_ready, with_remedy
from espalier.gateway.promotion import promotion
from espalier.gateway.runs import active_run, is_paused, live_epoch
from espalier.gateway.services import REQUEST_ID, UPSTREAM_SECONDS, Services
from espalier.gateway.snapshot import Id
from espalier.gateway.trainers import TRAINER, Trainers

COMMANDS = frozenset({"forward-backward", "forward", "backward", "zero-grad", "optim-step"})
READS = frozenset({"losses", "state"})
CHECKPOINT_DIGEST = "Espalier-Checkpoint-Digest"
PROMOTION_SECONDS = 60.0
TRAINER_SECONDS = 600.0
CONNECT_SECONDS = 5.0

_TIMEOUT = aiohttp.ClientTimeout(total=TRAINER_SECONDS, sock_connect=CONNECT_SECONDS)
_PASSED_ON = ("Content-Type", "Content-Length", IDEMPOTENCY_KEY, EPOCH)
_PASSED_BACK = ("Content-Type", "Retry-After", CHECKPOINT_DIGEST, EPOCH)
_SEND_AGAIN = (
    f"Send it again, with the same {IDEMPOTENCY_KEY} if it has one: a command whose answer was "
    "lost is applied once"
)


@dataclass(frozen=True)
class _Answer:
    """What the trainer answered, with the headers that go back."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    key: str = ""


class Train:
    """Handler of ``/v1/models/{slug}/train/{command}``."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._trainers = Trainers(services)
        self._reports = delivery.Reports()

    async def handle(self, request: web.Request) -> web.Response:
        """Sends the command to the trainer and its answer back, unchanged but for one header.

        A client without keys is named to the trainer, which is told when the client has its answer.
        """
        user = await self._services.caller(request)
        model = await self._services.model(user, _slug(request))
        await self._authorize(user, model)
        command = request.match_info["command"]
        # Who sends keys, or reads, sends again; who sends none may be a client that does not.
        held = IDEMPOTENCY_KEY not in request.headers and command != "state"
        trainer = await self._trainers.ready(model, held=held)
        started = time.perf_counter()
        try:
            answer = await self._pass_on(request, user, model, trainer, command)
        finally:
            request[UPSTREAM_SECONDS] = time.perf_counter() - started
        body = answer.body
        if answer.status >= 400 and unkeyed(request):
            body = with_remedy(body)
        headers = dict(answer.headers)
        if command == "optim-step" and answer.status == 200:
            headers[PROMOTION] = await self._promoted(model, answer)
        response = web.Response(body=body, status=answer.status, headers=headers)
        if answer.key:
            response.headers["X-Request-Id"] = request[REQUEST_ID]
            if await delivery.send(request, response):
                self._reports.start(partial(self._delivered, model, trainer, answer.key))
        return response

    async def _delivered(self, model: Id, trainer: Pod, key: str) -> None:
        headers = self._services.tokens.header(model, trainer) | {IDEMPOTENCY_KEY: key}
        async with self._services.session.post(
            f"http://{trainer.address}/train/delivered", headers=headers, timeout=_TIMEOUT
        ) as answer:
            answer.raise_for_status()

    async def _authorize(self, user: User, model: Id) -> None:
        """Training is ``update`` on the active run; no run, or a head that pauses it, is a 409."""
        run = active_run(self._services.view.snapshot, model)
        if run is None:
            await self._services.auth.require(user, "get", "trainablemodels", model)
            raise RefusalError(
                409,
                "NoActiveRun",
                f"no TrainingRun trains model {model} now",
                "Create one with spec.modelRef.name "
                f"{model.name} (driver: Client to drive it yourself), or resume or extend one",
            )
        name = model.beside(run.metadata.name)
        await self._services.auth.require(user, "update", "trainingruns", name)
        if is_paused(self._services.view.snapshot, model):
            raise RefusalError(
                409,
                "HeadPinned",
                f"the head of {model} is pinned, and onPin: Pause holds training",
                "Set the head's spec.mode to Track, or spec.onPin to Branch",
            )

    async def _pass_on(
        self, request: web.Request, user: User, model: Id, trainer: Pod, command: str
    ) -> _Answer:
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        headers["X-Request-Id"] = request[REQUEST_ID]
        if unkeyed(request):
            headers[CLIENT] = _client(user)
        headers |= self._services.tokens.header(
            model, trainer, live_epoch(self._services.view.snapshot, model)
        )
        try:
            async with self._services.session.request(
                request.method,
                f"http://{trainer.address}/train/{command}",
                # Streamed: a batch of long rollouts is large, and the trainer alone reads it.
                data=request.content if request.can_read_body else None,
                headers=headers,
                timeout=_TIMEOUT,
            ) as answer:
                kept = {
                    name: answer.headers[name] for name in _PASSED_BACK if name in answer.headers
                }
                key = answer.headers.get(IDEMPOTENCY_KEY, "")
                return _Answer(answer.status, kept, await answer.read(), key)
        except aiohttp.ClientError as error:
            pods = self._services.view.snapshot.pods_of(model, TRAINER)
            waiting = why_none_ready(pods) or Waiting("TrainerUnreachable", "the pod is ready")
            raise not_ready(
                waiting.reason,
                f"the connection to the trainer of {model} is lost: {error}; {waiting.message}",
                _SEND_AGAIN,
            ) from error
        except TimeoutError as error:
            raise RefusalError(
                504,
                "TrainerTimeout",
                f"the trainer of {model} did not answer within {TRAINER_SECONDS:.0f} s",
                _SEND_AGAIN,
            ) from error

    async def _promoted(self, model: Id, answer: _Answer) -> str:
        """Served, Pinned, Gated, or Timeout when none of these came true in time."""
        digest = answer.headers[CHECKPOINT_DIGEST]
        checkpoint = json.loads(answer.body)["checkpoint_id"]
        found = await self._services.view.wait_for(
            lambda snapshot: promotion(snapshot, model, checkpoint, digest), PROMOTION_SECONDS
        )
        return found or "Timeout"


def unkeyed(request: web.Request) -> bool:
    """Whether it is a training command of a client without keys, such as HUD's."""
    command = request.match_info.get("command")
    return command in COMMANDS and IDEMPOTENCY_KEY not in request.headers


def _client(user: User) -> str:
    """The session of a caller without keys; a model's trainer keeps one for each."""
    return f"unkeyed-{hashlib.sha256(user.name.encode()).hexdigest()[:24]}"


def _slug(request: web.Request) -> str:
    match = request.match_info
    return f"{match['namespace']}/{match['slug']}" if "namespace" in match else match["slug"]
