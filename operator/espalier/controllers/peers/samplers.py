"""Makes rollouts load adapters, and remembers what they confirmed until the process ends.

An engine may drop an adapter, and its server may restart, without any event. Every answer is
therefore asked for again after a while, and asking for a missing adapter loads it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from espalier.api.wire.problem import Problem
from espalier.api.wire.rollout_control import ServeRequest
from espalier.backoff import Backoff
from espalier.controllers.peers.peer import Peer
from espalier.controllers.peers.sampler_client import RolloutControl, RolloutError
from espalier.core.head.head_view import SamplerPod
from espalier.core.head.served_adapters import DesiredAdapters, choose
from espalier.core.names import ADAPTER_DIGEST_CHARS, BASE
from espalier.core.pods.pods import Pod
from espalier.core.volume import DIGEST_PREFIX

READ_BACK_SECONDS = 30.0
RETRY = Backoff(first=1.0, cap=READ_BACK_SECONDS, jitter=0.0)
# A question that is due this soon is asked at once: a timer may fire a moment early, and must not
# be set for that moment again.
EARLY_SECONDS = 0.05


@dataclass(frozen=True)
class _PodAnswer:
    """The last answer of a pod, and the start of its container that it holds for.

    ``refused`` are the adapters that it cannot load as they are; ``failures`` counts the calls in a
    row that ended otherwise; ``due`` is when to ask again, in the event loop's time.
    """

    instance: str
    desired: tuple[DesiredAdapters, ...]
    due: float
    loaded: frozenset[str] | None = None
    refused: Mapping[str, Problem] = field(default_factory=dict)
    problem: str = ""
    failures: int = 0


class Rollouts:
    """Has all pods of a model load the adapters that its heads want."""

    def __init__(self, client: RolloutControl) -> None:
        self._client = client
        self._answers: dict[tuple[str, str], _PodAnswer] = {}
        self._turns: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def serve(
        self, namespace: str, model: str, pods: Sequence[Pod], desired: Sequence[DesiredAdapters]
    ) -> float | None:
        """Have every pod that has started confirm the desired, unless it did so a moment ago.

        Returns the seconds until the first of them should be asked again; None without pods.
        """
        wanted = tuple(desired)
        async with self._turns[namespace, model]:
            asked = [
                self._ask(Peer.of(namespace, model, pod), pod, wanted)
                for pod in pods
                if pod.started and pod.ip and self._is_due(namespace, pod, wanted)
            ]
            await asyncio.gather(*asked)
            now = asyncio.get_running_loop().time()
            answers = [self._answer(namespace, pod) for pod in pods if pod.started]
            return min((max(0.0, a.due - now) for a in answers if a is not None), default=None)

    def seen(self, namespace: str, pods: Iterable[Pod]) -> list[SamplerPod]:
        """The pods as the head's decision sees them; only those that have started."""
        rollouts = []
        for pod in pods:
            answer = self._answer(namespace, pod)
            if pod.started and answer is None:
                rollouts.append(SamplerPod(pod.name, pod.ready))
            elif pod.started and answer is not None:
                rollouts.append(
                    SamplerPod(pod.name, pod.ready, answer.loaded, answer.problem, answer.refused)
                )
        return rollouts

    def refusal(self, namespace: str, digest: str) -> Problem | None:
        """Why a pod refused to load a checkpoint as it is; None if none did."""
        for adapter, problem in self._refused(namespace):
            if _is_of(adapter, digest):
                return problem
        return None

    def verified(self, namespace: str, digest: str) -> bool:
        """Whether a pod has a checkpoint loaded, which it verified before."""
        return any(
            _is_of(adapter, digest)
            for (home, _), answer in self._answers.items()
            for adapter in answer.loaded or ()
            if home == namespace
        )

    def forget(self, namespace: str, name: str) -> None:
        """A pod is gone."""
        self._answers.pop((namespace, name), None)

    def _refused(self, namespace: str) -> list[tuple[str, Problem]]:
        return [
            item
            for (home, _), answer in self._answers.items()
            if home == namespace
            for item in answer.refused.items()
        ]

    def _answer(self, namespace: str, pod: Pod) -> _PodAnswer | None:
        """The last answer of this start of the pod's container."""
        answer = self._answers.get((namespace, pod.name))
        return answer if answer is not None and answer.instance == pod.instance else None

    def _is_due(self, namespace: str, pod: Pod, wanted: tuple[DesiredAdapters, ...]) -> bool:
        answer = self._answer(namespace, pod)
        if answer is None or answer.desired != wanted:
            return True
        return answer.due <= asyncio.get_running_loop().time() + EARLY_SECONDS

    async def _ask(self, peer: Peer, pod: Pod, wanted: tuple[DesiredAdapters, ...]) -> None:
        before = self._answer(peer.namespace, pod)
        refused: dict[str, Problem] = {}
        loaded, problem, failures, wait = None, "", 0, READ_BACK_SECONDS
        try:
            loaded = await self._load(peer, wanted, refused)
        except RolloutError as error:
            problem = str(error)
            failures = before.failures + 1 if before is not None else 1
            wait = RETRY.delay(failures)
        due = asyncio.get_running_loop().time() + wait
        self._answers[peer.namespace, pod.name] = _PodAnswer(
            pod.instance, wanted, due, loaded, refused, problem, failures
        )

    async def _load(
        self, peer: Peer, wanted: tuple[DesiredAdapters, ...], refused: dict[str, Problem]
    ) -> frozenset[str]:
        """Load the desired adapters that the pod accepts: a refused one must not block the others.

        Fills ``refused``; RolloutError if the pod does not answer or fails otherwise.
        """
        while True:
            adapters = choose(wanted, refused)
            if refused and not adapters:
                # An empty request would make the pod ready without anything to serve.
                return frozenset({BASE})
            try:
                return await self._serve(peer, adapters)
            except RolloutError as error:
                if not error.final:
                    raise
                await self._single_out(peer, adapters, error, refused)

    async def _single_out(
        self, peer: Peer, adapters: list[str], error: RolloutError, refused: dict[str, Problem]
    ) -> None:
        """Find which of these the pod refuses; ``error`` again if it takes each of them alone."""
        if len(adapters) == 1:
            refused[adapters[0]] = error.problem
            return
        known = len(refused)
        for adapter in adapters:
            try:
                await self._serve(peer, [adapter])
            except RolloutError as alone:
                if not alone.final:
                    raise
                refused[adapter] = alone.problem
        if len(refused) == known:
            raise error

    async def _serve(self, peer: Peer, adapters: list[str]) -> frozenset[str]:
        served = await self._client.serve(peer, ServeRequest(adapters=adapters))
        if missing := set(adapters) - set(served.adapters):
            detail = f"did not load {', '.join(sorted(missing))}"
            raise RolloutError(0, Problem(detail=detail, reason="NotLoaded"))
        return frozenset(served.adapters) | ({BASE} if served.base else frozenset())


def _is_of(adapter: str, digest: str) -> bool:
    """Whether an adapter is a checkpoint of that digest, of any model."""
    return adapter.endswith(f"@{digest.removeprefix(DIGEST_PREFIX)[:ADAPTER_DIGEST_CHARS]}")
