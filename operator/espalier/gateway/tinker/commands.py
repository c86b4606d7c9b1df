"""Passes commands to the trainer of a model, and asks it for their results.

A command is in the trainer's inbox before it is acknowledged, so it is sent again here until it is:
the trainer knows it by its number.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import quote

import aiohttp

from espalier.api.wire.headers import IDEMPOTENCY_KEY
from espalier.gateway.access.auth import User
from espalier.gateway.access.pod_answers import read_held, refusal
from espalier.gateway.access.pod_calls import PodCalls
from espalier.gateway.access.quotas import Quotas
from espalier.gateway.problems import RefusalError, not_ready
from espalier.gateway.routes.trainer_lookup import TrainerLookup
from espalier.gateway.routes.training_access import declared_header
from espalier.gateway.tinker.names import TinkerModel
from espalier.gateway.world.pod_addresses import PodAddress
from espalier.gateway.world.turn import live_term
from espalier.gateway.world.watch import WorldWatch
from espalier.telemetry import spans
from espalier.tinker.commands import COMMANDS, RESULTS, CommandKind
from espalier.untrusted import UnreadableError

# The client gives up on a submission after 60 s.
SUBMIT_SECONDS = 40.0
AGAIN_SECONDS = 0.5
CONNECT_SECONDS = 5.0

JSON = "application/json"


@dataclass(frozen=True)
class Answer:
    """A trainer's answer."""

    status: int
    content_type: str
    body: bytes


class Commands:
    """Calls trainers."""

    def __init__(
        self, watch: WorldWatch, trainers: TrainerLookup, pods: PodCalls, quotas: Quotas
    ) -> None:
        self._watch = watch
        self._trainers = trainers
        self._pods = pods
        self._quotas = quotas

    async def submit(  # noqa: PLR0917 the parts of a command, and whose it is
        self,
        user: User,
        model: TinkerModel,
        number: int,
        kind: CommandKind,
        body: bytes,
        content_type: str = JSON,
    ) -> None:
        """Returns once the command is in the inbox.

        Raises:
            RefusalError: the trainer's own, 503 when none took it in time, or 429 of a caller who
                submits too many at once.
        """
        trained = model.trained
        spans.note({spans.NAMESPACE: trained.namespace, spans.MODEL: trained.name})
        async with self._quotas.train(user, trained):
            await self._submit(model, number, kind, body, content_type)

    async def _submit(
        self, model: TinkerModel, number: int, kind: CommandKind, body: bytes, content_type: str
    ) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SUBMIT_SECONDS
        while True:
            pod = await self._trainers.ready(model.trained, max(deadline - loop.time(), 0.0))
            try:
                answer = await self._send(model, pod, number, kind, body, content_type)
            except (aiohttp.ClientError, TimeoutError) as error:
                refused = not_ready(
                    "TrainerUnreachable", f"the trainer of {model.trained}: {error}"
                )
            else:
                if answer.status < 300:
                    return
                refused = _refused(answer)
                if refused.status < 500:
                    raise refused
            if loop.time() + AGAIN_SECONDS > deadline:
                raise refused
            await asyncio.sleep(AGAIN_SECONDS)

    async def result(self, model: TinkerModel, number: int, seconds: float) -> Answer:
        """The trainer's answer about a command, which it holds for so long.

        Raises:
            RefusalError: 503, none answers.
        """
        # Not one that is starting: it may have the result, and says so itself.
        pod = await self._trainers.ready(model.trained)
        url = f"http://{pod.address}{RESULTS}/{quote(str(model))}/{number}"
        timeout = aiohttp.ClientTimeout(total=seconds + 10.0, sock_connect=CONNECT_SECONDS)
        try:
            async with self._pods.session.get(
                url,
                params={"wait": f"{seconds:.0f}"},
                headers=self._header(model, pod),
                timeout=timeout,
            ) as response:
                return await self._read(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise not_ready(
                "TrainerUnreachable", f"the trainer of {model.trained}: {error}"
            ) from error

    async def _send(  # noqa: PLR0917 the parts of a command
        self,
        model: TinkerModel,
        pod: PodAddress,
        number: int,
        kind: CommandKind,
        body: bytes,
        content_type: str,
    ) -> Answer:
        headers = {
            "Content-Type": content_type,
            IDEMPOTENCY_KEY: f"{model}/{number}",
            **declared_header(self._watch.world, model.trained),
            **self._header(model, pod),
        }
        timeout = aiohttp.ClientTimeout(total=SUBMIT_SECONDS, sock_connect=CONNECT_SECONDS)
        async with self._pods.session.post(
            f"http://{pod.address}{COMMANDS}/{kind}", data=body, headers=headers, timeout=timeout
        ) as response:
            return await self._read(response)

    def _header(self, model: TinkerModel, pod: PodAddress) -> dict[str, str]:
        term = live_term(self._watch.world, model.trained)
        return self._pods.tokens.header(model.trained, pod, term)

    async def _read(self, response: aiohttp.ClientResponse) -> Answer:
        with self._pods.answers.hold() as hold:
            body = await read_held(response, hold)
        return Answer(response.status, response.content_type, body)


def _refused(answer: Answer) -> RefusalError:
    try:
        return refusal(answer.status, answer.body)
    except UnreadableError:
        return RefusalError(
            answer.status, "TrainerRefused", f"the trainer answered {answer.status}"
        )
