"""Kept rollouts of a checkpoint, read by one of the model's samplers from its volume."""

from __future__ import annotations

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from espalier.api.checkpoint import Checkpoint
from espalier.api.console import RolloutPage
from espalier.api.wire.rollout_control import KEPT_ROLLOUTS
from espalier.core.names import adapter_name
from espalier.gateway.access.pod_answers import read_held, refusal
from espalier.gateway.access.pod_calls import PodCalls
from espalier.gateway.problems import not_ready
from espalier.gateway.world.pod_addresses import PodAddress
from espalier.gateway.world.routing import ROLLOUT, NotReady, resolve
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName
from espalier.podclient import unknown
from espalier.untrusted import UnreadableError, read_model

_TIMEOUT = aiohttp.ClientTimeout(total=60.0)


class _Answer(BaseModel):
    """A sampler's answer."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    records: list[dict[str, JsonValue]]
    total: int = Field(ge=0)
    next: int | None = Field(default=None, ge=1)


class KeptRollouts:
    """Asks samplers, as the gateway."""

    def __init__(self, watch: WorldWatch, pods: PodCalls) -> None:
        self._watch = watch
        self._pods = pods

    async def page(self, model: NamespacedName, checkpoint: Checkpoint, after: int) -> RolloutPage:
        """A page of the records that follow the first ``after``.

        Raises:
            RefusalError: 503 without a sampler that is ready; what the sampler refused.
            PodFaultError: it answered as no sampler does.
        """
        pod = self._ready(model)
        name = adapter_name(model.name, checkpoint.spec.digest)
        try:
            async with self._pods.session.get(
                f"http://{pod.address}{KEPT_ROLLOUTS}",
                params={"checkpoint": name, "after": str(after)},
                headers=self._pods.tokens.header(model, pod),
                timeout=_TIMEOUT,
            ) as answer:
                with self._pods.answers.hold() as hold:
                    text = await read_held(answer, hold)
                    try:
                        if answer.status != 200:
                            raise refusal(answer.status, text)
                        read = read_model(_Answer, text)
                    except UnreadableError as error:
                        raise unknown(answer, f"answers with no rollouts: {error}") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise not_ready(
                "RolloutUnreachable", f"a rollout of {model} did not answer: {error}"
            ) from error
        return RolloutPage(
            checkpoint=checkpoint.metadata.name,
            total=read.total,
            next=read.next,
            records=read.records,
        )

    def _ready(self, model: NamespacedName) -> PodAddress:
        world = self._watch.world
        ready = [pod for pod in world.pods_of(model, ROLLOUT) if pod.ready]
        if ready:
            return ready[0]
        waits = resolve(world, model, "base")
        assert isinstance(waits, NotReady)
        raise not_ready(
            waits.reason,
            f"kept rollouts are read by the model's samplers: {waits.message}",
            waits.remedy,
            from_pod=True,
        )
