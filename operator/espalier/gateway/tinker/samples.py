"""Samples on their way. One begins when its result is first asked for, goes on between two polls,
and ends when nobody asks any more. Its request is in its future, so a gateway that knows nothing of
it samples it, and nothing that a client waits for is lost with a gateway.

What it holds between two polls is counted as its caller's: the text of its request among bodies,
and its result among answers, where it is kept for a poll that is lost as long as there is room.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import aiohttp
from pydantic_core import to_json

from espalier.api.wire.headers import CALLER
from espalier.gateway.access.auth import User
from espalier.gateway.access.byte_budget import ByteBudget, Hold
from espalier.gateway.access.pod_answers import read_held
from espalier.gateway.access.pod_calls import PodCalls
from espalier.gateway.access.quotas import Limits, Quotas, Share
from espalier.gateway.problems import RefusalError, not_ready
from espalier.gateway.routes.full_weights_swap import SENDINGS, NotLoadedError, after_the_move
from espalier.gateway.routes.rewrite import refuse_cut_short, tokens_of
from espalier.gateway.tinker import sampling
from espalier.gateway.tinker.bodies import Sample
from espalier.gateway.tinker.models import stalled
from espalier.gateway.tinker.names import Sampler
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

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=ANSWER_SECONDS)


@dataclass
class _Running:
    """One sample.

    Attributes:
        user: who asked for it.
        sampler: what is sampled.
        text: of the request, as JSON; empty once it has ended.
        room: of the text.
        kept: room of the result.
        lasts: whether there is room to keep the result for another poll.
        waits: for what.
        asked: how often it was asked for.
        open: polls that wait for it.
    """

    user: User
    sampler: Sampler
    text: bytes
    room: Hold
    kept: Hold
    task: asyncio.Task[bytes] = field(init=False)
    lasts: bool = False
    waits: NotReady | None = None
    asked: int = 0
    open: int = 0

    @property
    def request(self) -> Sample:
        """What is asked for; read anew, because tokens take much more room than their text."""
        return Sample.model_validate_json(self.text)

    def end(self) -> None:
        """Its request is not needed any more."""
        self.text = b""
        self.room.release()


class Samples:
    """Runs samples at the rollouts of their models.

    Args:
        watch: the cluster as it is now.
        pods: calls the rollouts.
        quotas: of samples at once, and of tokens.
        bodies: the budget for requests.
        limits: what of it, and of the room for answers, one caller may hold.
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
        self._percent = limits.body_percent
        self._running: dict[str, _Running] = {}
        self._turns: Counter[NamespacedName] = Counter()

    def knows(self, user: User, future: str) -> bool:
        """Whether a caller's sample is begun already."""
        return _key(user, future) in self._running

    async def begin(self, user: User, future: str, sampler: Sampler, request: Sample) -> None:
        """Begins a sample; RefusalError 429 or 503 without room for its request."""
        text = to_json(request.model_dump(exclude_defaults=True))
        room = self._bodies.hold_of(user.name, self._percent)
        await room.take(len(text))
        kept = self._pods.answers.hold_of(user.name, self._percent)
        running = _Running(user, sampler, text, room, kept)
        running.task = asyncio.create_task(self._sample(running))
        running.task.add_done_callback(lambda _: running.end())
        self._running[_key(user, future)] = running

    async def result(self, user: User, future: str, seconds: float) -> bytes | NotReady | None:
        """The SampleResponse; what it waits for; None while it is being sampled.

        Raises:
            RefusalError: it cannot be sampled.
        """
        key = _key(user, future)
        running = self._running[key]
        running.asked += 1
        running.open += 1
        try:
            await asyncio.wait({running.task}, timeout=seconds)
        finally:
            running.open -= 1
            drop = partial(self._drop, key, running, running.asked)
            asyncio.get_running_loop().call_later(IDLE_SECONDS, drop)
        if not running.task.done():
            return running.waits
        if running.task.cancelled() or running.task.exception() is not None or not running.lasts:
            # Asked again it is tried again.
            self._running.pop(key, None)
        return running.task.result()

    def _drop(self, key: str, running: _Running, asked: int) -> None:
        """Ends a sample that nobody has asked for since."""
        if running.asked == asked and not running.open and self._running.get(key) is running:
            del self._running[key]
            running.kept.release()
            if not running.task.cancel() and not running.task.cancelled():
                # Read here, because nobody else will.
                running.task.exception()

    async def _sample(self, running: _Running) -> bytes:
        target = await self._target(running)
        async with self._quotas.sample(running.user, target.model) as share:
            return await self._sent(running, target, share)

    async def _sent(self, running: _Running, target: Target, share: Share) -> bytes:
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

    async def _target(self, running: _Running) -> Target:
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

    async def _send(self, running: _Running, target: Target, share: Share) -> bytes:
        spec = self._watch.world.models[target.model].spec
        context = spec.rollout.max_model_tokens
        sent = to_json({"model": target.adapter, **sampling.completion(running.request, context)})
        lost: Exception = RuntimeError("never sent")
        for _ in range(ATTEMPTS):
            turn = self._turns[target.model] = self._turns[target.model] + 1
            pod = target.pods[turn % len(target.pods)]
            try:
                return await self._send_to(pod, running, target, sent, share)
            except aiohttp.ClientError as error:
                lost = error
                await asyncio.sleep(AGAIN_SECONDS)
        raise not_ready("RolloutUnreachable", f"a rollout of {target.model} is lost: {lost}")

    async def _send_to(
        self, pod: PodAddress, running: _Running, target: Target, sent: bytes, share: Share
    ) -> bytes:
        headers = {
            **self._pods.tokens.header(target.model, pod),
            "Content-Type": "application/json",
            CALLER: running.user.digest,
        }
        url = f"http://{pod.address}/v1/completions"
        async with self._pods.session.post(
            url, data=sent, headers=headers, timeout=_TIMEOUT
        ) as response:
            with self._pods.answers.hold() as hold:
                answer = await read_held(response, hold)
                if response.status == 200:
                    share.spend(tokens_of(answer))
                    refuse_cut_short(answer)
                    try:
                        result = sampling.response(running.request, read_json(answer))
                    except UnreadableError as error:
                        raise unknown(response, f"answers a completion wrongly: {error}") from error
                    hold.release()
                    running.lasts = await running.kept.take_if_free(len(result))
                    return result
            message = _message_of(answer)
            if response.status == 409:
                raise NotLoadedError(message)
            if response.status in (429, 503):
                raise not_ready("RolloutBusy", f"a rollout of {target.model}: {message}")
            raise RefusalError(response.status, SAMPLE_REFUSED, message)


def _key(user: User, future: str) -> str:
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
