"""The trainers that keep traces: who keeps a user's samples, and calls of a trainer's routes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import aiohttp

from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.access.byte_budget import Hold
from espalier.gateway.access.pod_answers import read_held
from espalier.gateway.access.pod_calls import PodCalls
from espalier.gateway.access.pod_faults import refusal_of
from espalier.gateway.problems import RefusalError
from espalier.gateway.world.pod_addresses import PodAddress
from espalier.gateway.world.routing import find_model
from espalier.gateway.world.turn import active_run
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName
from espalier.podclient import PodFaultError

_TIMEOUT = aiohttp.ClientTimeout(total=10.0)


@dataclass(frozen=True)
class Keeper:
    """Keeps a user's samples of a model: its trainer, or the outbox while there is none."""

    model: NamespacedName
    user: User
    pod: PodAddress | None


class TraceKeepers:
    """Finds the keepers of traces and calls their trainers."""

    def __init__(self, watch: WorldWatch, auth: Authenticator, pods: PodCalls) -> None:
        self._watch = watch
        self._auth = auth
        self._pods = pods

    async def keeper(self, user: User, model: NamespacedName) -> Keeper | None:
        """The keeper of the caller's samples of a model; None if the caller may not train it."""
        world = self._watch.world
        if model.namespace not in world.namespaces:
            return None
        run = active_run(world, model)
        pod = world.ready_trainer(model)
        auth = self._auth
        if run is not None:
            name = model.beside(run.metadata.name)
            may = await auth.allowed(user, "update", "trainingruns", name)
            return Keeper(model, user, pod) if may else None
        # Who may train any run, or make one, may come to train on what is sampled before it.
        every = model.beside("")
        may = await auth.allowed(user, "update", "trainingruns", every) or await auth.allowed(
            user, "create", "trainingruns", every
        )
        return Keeper(model, user, None) if may else None

    async def all(self, user: User, slug: str) -> list[Keeper]:
        """The keepers of a model, or without a slug of every model; RefusalError 404 for none."""
        world = self._watch.world
        named = find_model(world, slug) if slug else None
        models = [named] if isinstance(named, NamespacedName) else sorted(world.models)
        asked = await asyncio.gather(*(self.keeper(user, model) for model in models))
        keepers = [keeper for keeper in asked if keeper is not None]
        if not keepers:
            raise RefusalError(
                404,
                "NothingTrains",
                "there is no model that you may train, so nothing keeps the report",
                "Grant verb create or update on trainingruns of the model's namespace",
            )
        return keepers

    async def call(
        self, method: str, keeper: Keeper, path: str, hold: Hold, body: bytes | None = None
    ) -> tuple[int, bytes]:
        """Status and body; 503 if the trainer did not answer, 502 if its answer is invalid."""
        assert keeper.pod is not None, "without a trainer the outbox keeps the request"
        headers = self._pods.tokens.header(keeper.model, keeper.pod)
        url = f"http://{keeper.pod.address}/traces{path}"
        try:
            async with self._pods.session.request(
                method, url, data=body, headers=headers, timeout=_TIMEOUT
            ) as answer:
                return answer.status, await read_held(answer, hold)
        except PodFaultError as fault:
            refusal = refusal_of(self._watch.world, fault)
            problem = {"detail": refusal.detail, "reason": refusal.reason}
            return 502, json.dumps({**problem, "remedy": refusal.remedy}).encode()
        except (aiohttp.ClientError, TimeoutError) as error:
            problem = {"detail": f"the trainer of {keeper.model}: {error!r}", "reason": "Lost"}
            return 503, json.dumps({**problem, "remedy": "Send it again"}).encode()
