"""The operator's side of the rollout control protocol: have adapters loaded, read back."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from pydantic import ValidationError

from espalier.api.wire import Served, ServeRequest
from espalier.controllers.trainer_client import Peer
from espalier.core.head import Rollout
from espalier.core.names import BASE
from espalier.core.pods import Pod

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 30.0


class RolloutError(Exception):
    """The rollout refused or did not answer."""


class RolloutControl(Protocol):
    """The rollout's control route."""

    async def serve(self, peer: Peer, request: ServeRequest) -> Served:
        """Have the adapters loaded and verified; RolloutError if that failed."""


class RolloutClient:
    """Calls rollouts at their pods' addresses."""

    def __init__(self, session: aiohttp.ClientSession, private_key: str) -> None:
        self._session = session
        self._private_key = private_key

    async def serve(self, peer: Peer, request: ServeRequest) -> Served:
        """See RolloutControl."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS, connect=CONNECT_SECONDS)
        headers = peer.headers(self._private_key)
        url = f"{peer.url}/espalier/v1/serve"
        try:
            async with self._session.post(
                url, data=request.model_dump_json(), headers=headers, timeout=timeout
            ) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RolloutError(f"{url}: {error!r}") from error
        if answer.status >= 400:
            raise RolloutError(f"{answer.status}: {text[:400]}")
        try:
            return Served.model_validate_json(text)
        except ValidationError as error:
            raise RolloutError(f"the rollout's answer is not a Served: {error}") from error


@dataclass(frozen=True)
class _Answer:
    """What a pod last confirmed, and the start of its container that it holds for."""

    instance: str
    asked: frozenset[str]
    loaded: frozenset[str] | None
    problem: str = ""


class Rollouts:
    """What the rollouts were told and confirmed; forgotten with the process, asked again after."""

    def __init__(self, client: RolloutControl) -> None:
        self._client = client
        self._answers: dict[tuple[str, str], _Answer] = {}
        self._turns: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def serve(
        self, namespace: str, model: str, pods: Iterable[Pod], adapters: Iterable[str]
    ) -> None:
        """Have every pod that has started confirm these adapters; those that did are skipped."""
        wanted = frozenset(adapters) - {BASE}
        async with self._turns[namespace, model]:
            await asyncio.gather(
                *(
                    self._ask(namespace, model, pod, wanted)
                    for pod in pods
                    if pod.started and pod.ip and not self._confirmed(namespace, pod, wanted)
                )
            )

    def seen(self, namespace: str, pods: Iterable[Pod]) -> list[Rollout]:
        """The pods as the head's decision sees them; only those that have started."""
        rollouts = []
        for pod in pods:
            answer = self._answers.get((namespace, pod.name))
            known = answer is not None and answer.instance == pod.instance
            if pod.started:
                rollouts.append(
                    Rollout(
                        name=pod.name,
                        ready=pod.ready,
                        loaded=answer.loaded if answer and known else None,
                        problem=answer.problem if answer and known else "",
                    )
                )
        return rollouts

    def forget(self, namespace: str, name: str) -> None:
        """A pod is gone."""
        self._answers.pop((namespace, name), None)

    def _confirmed(self, namespace: str, pod: Pod, wanted: frozenset[str]) -> bool:
        answer = self._answers.get((namespace, pod.name))
        return (
            answer is not None
            and (answer.instance, answer.asked) == (pod.instance, wanted)
            and answer.loaded is not None
        )

    async def _ask(self, namespace: str, model: str, pod: Pod, wanted: frozenset[str]) -> None:
        request = ServeRequest(adapters=sorted(wanted))
        loaded, problem = None, ""
        try:
            served = await self._client.serve(Peer(namespace, model, pod.ip), request)
            loaded = frozenset(served.adapters) | {BASE}
            if missing := wanted - loaded:
                loaded, problem = None, f"did not load {', '.join(sorted(missing))}"
        except RolloutError as error:
            problem = str(error)
        self._answers[namespace, pod.name] = _Answer(pod.instance, wanted, loaded, problem)
