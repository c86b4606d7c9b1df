"""Samples on their way. One begins when its result is first asked for, goes on between two polls,
and ends when nobody asks any more. Its request is in its future, so a gateway that knows nothing of
it samples it, and nothing that a client waits for is lost with a gateway.

What it holds between two polls is counted as its caller's: its request among bodies, until it has
ended, and its result in a room of its own. A poll that waits is told at once how a sample ended.
Where the room is full the result is not kept beyond that, and whoever asks again samples anew.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter

import aiohttp
from pydantic_core import to_json

from espalier.api.wire.headers import CALLER
from espalier.gateway.access.auth import User
from espalier.gateway.access.byte_budget import ByteBudget
from espalier.gateway.access.pod_answers import read_held
from espalier.gateway.access.pod_calls import PodCalls
from espalier.gateway.access.quotas import Limits, Quotas, Share
from espalier.gateway.problems import RefusalError, not_ready
from espalier.gateway.routes.full_weights_swap import SENDINGS, NotLoadedError, after_the_move
from espalier.gateway.routes.rewrite import refuse_cut_short, tokens_of
from espalier.gateway.tinker import sampling
from espalier.gateway.tinker.bodies import Sample
from espalier.gateway.tinker.kept_results import KeptResults
from espalier.gateway.tinker.models import stalled
from espalier.gateway.tinker.names import Sampler
from espalier.gateway.tinker.running_sample import Running, brief
from espalier.gateway.world.pod_addresses import PodAddress
from espalier.gateway.world.routing import NO_REPLICAS, NotReady, Slug, Target, Unknown, resolve
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName, ServedWorld
from espalier.podclient import unknown
from espalier.untrusted import UnreadableError, read_json

# Longer than a client waits between two polls, and than an answer takes to be lost and asked again.
IDLE_SECONDS = 60.0
CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 600.0
AGAIN_SECONDS = 1.0
ATTEMPTS = 3
SAMPLE_REFUSED = "SampleRefused"
# A checkpoint's commit is acknowledged before its object reaches the cache.
CHECKPOINT_SECONDS = 10.0
# Of what one caller's bodies may hold, what its samples may: room is left for its polls.
PERCENT_OF_BODIES = 50

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=ANSWER_SECONDS)


class Samples:
    """Runs samples at the rollouts of their models.

    Args:
        watch: the cluster as it is now.
        pods: calls the rollouts.
        quotas: of samples at once, and of tokens.
        bodies: the budget for requests.
        limits: what of it one caller may hold.
    """

    def __init__(
        self,
        watch: WorldWatch,
        pods: PodCalls,
        quotas: Quotas,
        bodies: ByteBudget,
        limits: Limits,
    ) -> None:
        self._watch = watch
        self._pods = pods
        self._quotas = quotas
        self._bodies = bodies
        self._percent = limits.body_percent * PERCENT_OF_BODIES // 100
        self._kept = KeptResults()
        self._running: dict[str, Running] = {}
        self._turns: Counter[NamespacedName] = Counter()

    def knows(self, key: str) -> bool:
        """Whether a sample is begun already."""
        return key in self._running

    async def begin(self, key: str, user: User, sampler: Sampler, request: Sample) -> None:
        """Begins a sample; RefusalError 429 or 503 without room for its request. It never waits."""
        # How long a text may be is known when it is sent.
        completion = to_json(sampling.completion(request, 0))
        room = self._bodies.hold_of(user.name, self._percent)
        await room.take(len(completion))
        running = Running(user, sampler, brief(request), completion, room)
        self._running[key] = running
        running.task = asyncio.create_task(self._sample(running))
        running.task.add_done_callback(lambda _: self._ended(key, running))
        self._unasked(key, running)

    async def result(self, key: str, seconds: float) -> bytes | NotReady | None:
        """The SampleResponse; what it waits for; None while it is being sampled.

        Raises:
            RefusalError: it cannot be sampled. Asked again it is tried again.
        """
        running = self._running[key]
        running.open += 1
        try:
            await asyncio.wait({running.task}, timeout=seconds)
        finally:
            running.open -= 1
            if not running.open:
                self._unasked(key, running)
        return running.task.result() if running.task.done() else running.waits

    def _ended(self, key: str, running: Running) -> None:
        """Its request is not needed any more; its result is kept if there is room."""
        running.completion = b""
        running.room.release()
        if not running.task.cancelled() and running.task.exception() is None:
            size = len(running.task.result())
            if self._running.get(key) is running and self._kept.take(running.user.name, size):
                running.kept = size
        if not running.open:
            self._unasked(key, running)

    def _unasked(self, key: str, running: Running) -> None:
        """No poll waits for it now: what has ended and is not kept is forgotten, others later."""
        if running.task.done() and running.kept is None:
            self._forget(key, running)
            return
        if running.idle is not None:
            running.idle.cancel()
        loop = asyncio.get_running_loop()
        running.idle = loop.call_later(IDLE_SECONDS, self._forget, key, running)

    def _forget(self, key: str, running: Running) -> None:
        """Ends a sample for which no poll waits, and gives back what is kept of it."""
        if running.open:
            return
        if running.idle is not None:
            # It would hold the result as long as it would have run.
            running.idle.cancel()
        if self._running.get(key) is running:
            del self._running[key]
        if running.kept is not None:
            self._kept.give(running.user.name, running.kept)
            running.kept = None
        running.task.cancel()

    async def _sample(self, running: Running) -> bytes:
        target = await self._target(running)
        async with self._quotas.sample(running.user, target.model) as share:
            return await self._sent(running, target, share)

    async def _sent(self, running: Running, target: Target, share: Share) -> bytes:
        refused: Exception = RuntimeError("never sent")
        for _ in range(SENDINGS):
            try:
                return await self._send(running, target, share)
            except NotLoadedError as error:
                refused = error
                slug = Slug(running.sampler.model, running.sampler.model)
                target = await after_the_move(self._watch, slug, running.sampler.ref, target, error)
        raise not_ready(
            "HeadMoving", f"{running.sampler.model} is moved again and again: {refused}"
        )

    async def _target(self, running: Running) -> Target:
        """Where to sample, once something serves it."""
        sampler = running.sampler

        def settled(world: ServedWorld) -> Target | NotReady | Unknown | None:
            if sampler.model not in world.models:
                return Unknown(f"model {sampler.model} was deleted")
            meant = resolve(world, sampler.model, sampler.ref)
            if isinstance(meant, NotReady) and not _hopeless(world, sampler.model, meant):
                running.waits = meant
                return None
            return None if isinstance(meant, Unknown) else meant

        while True:
            meant = await self._watch.wait_for(settled, CHECKPOINT_SECONDS)
            if meant is None and running.waits is not None:
                running.waits = None
                continue
            if isinstance(meant, Target):
                running.waits = None
                return meant
            if isinstance(meant, NotReady):
                raise RefusalError(400, meant.reason, meant.message, meant.remedy, from_pod=True)
            if isinstance(meant, Unknown):
                raise RefusalError(404, "CheckpointNotFound", meant.detail)
            raise RefusalError(
                404, "CheckpointNotFound", f"model {sampler.model} has no {sampler.ref!r}"
            )

    async def _send(self, running: Running, target: Target, share: Share) -> bytes:
        model = self._watch.world.models.get(target.model)
        if model is None:
            raise RefusalError(404, "CheckpointNotFound", f"model {target.model} was deleted")
        running.address(target.adapter, model.spec.rollout.max_model_tokens)
        lost: Exception = RuntimeError("never sent")
        for _ in range(ATTEMPTS):
            turn = self._turns[target.model] = self._turns[target.model] + 1
            pod = target.pods[turn % len(target.pods)]
            try:
                return await self._send_to(pod, running, target, share)
            except aiohttp.ClientError as error:
                lost = error
                await asyncio.sleep(AGAIN_SECONDS)
        raise not_ready("RolloutUnreachable", f"a rollout of {target.model} is lost: {lost}")

    async def _send_to(
        self, pod: PodAddress, running: Running, target: Target, share: Share
    ) -> bytes:
        headers = {
            **self._pods.tokens.header(target.model, pod),
            "Content-Type": "application/json",
            CALLER: running.user.digest,
        }
        url = f"http://{pod.address}/v1/completions"
        async with self._pods.session.post(
            url, data=running.completion, headers=headers, timeout=_TIMEOUT
        ) as response:
            with self._pods.answers.hold() as hold:
                answer = await read_held(response, hold)
                if response.status == 200:
                    share.spend(tokens_of(answer))
                    refuse_cut_short(answer)
                    try:
                        return running.response(answer)
                    except UnreadableError as error:
                        raise unknown(response, f"answers a completion wrongly: {error}") from error
            message = _message_of(answer)
            if response.status == 409:
                raise NotLoadedError(message)
            if response.status in (429, 503):
                raise not_ready("RolloutBusy", f"a rollout of {target.model}: {message}")
            raise RefusalError(response.status, SAMPLE_REFUSED, message)


def key_of(user: User, future: str) -> str:
    """What a caller's sample is known by: another's with the same request is another sample."""
    return hashlib.sha256(f"{user.name}\n{future}".encode()).hexdigest()


def _hopeless(world: ServedWorld, model: NamespacedName, waits: NotReady) -> bool:
    """Whether a model is not served before somebody edits it; a pod may find room by itself."""
    return waits.reason == NO_REPLICAS or bool(stalled(world, model))


def _message_of(answer: bytes) -> str:
    try:
        return str(read_json(answer)["error"]["message"])[:4000]
    except (UnreadableError, LookupError, TypeError):
        return answer.decode(errors="replace")[:200]
