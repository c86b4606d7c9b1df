"""The scripted trainer and rollouts behind real HTTP, at the address of a pod."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.typedefs import Handler
from dev.ports import own_network
from tests.simulation.scripted import ScriptedRollouts, ScriptedTrainer

from espalier import identity
from espalier.api.wire.rollout_control import ServeRequest
from espalier.api.wire.trainer import Assignment
from espalier.controllers.peers.peer import PORT, Peer
from espalier.controllers.peers.trainer_client import TrainerError
from espalier.core.names import audience

NETWORK = own_network(PORT)
TRAINER_IP = f"{NETWORK}.2"
ROLLOUT_IP = f"{NETWORK}.3"


class Servers:
    """Routes of the wire contract; every call must carry the operator's token for the very pod."""

    def __init__(
        self, namespace: str, model: str, keys: identity.PublicKeys, rollout_ip: str = ROLLOUT_IP
    ) -> None:
        self.trainer = ScriptedTrainer()
        self.rollouts = ScriptedRollouts()
        self.trainer.up = {TRAINER_IP}
        self.rollouts.up = {ROLLOUT_IP}
        # The uids of the pods that these servers are, by role: known once the pods are there.
        self.uids: dict[str, str] = {}
        self._namespace, self._model = namespace, model
        self._rollout_ip = rollout_ip
        self._keys = keys

    def _peer(self, role: str) -> Peer:
        ip = TRAINER_IP if role == "trainer" else self._rollout_ip
        return Peer(self._namespace, self._model, ip, role, self.uids[role])

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._authenticated])
        app.router.add_post("/assign", self._assign)
        app.router.add_get("/train/state", self._state)
        app.router.add_get("/commits", self._commits)
        app.router.add_get("/usage", self._usage)
        app.router.add_post("/espalier/v1/serve", self._serve)
        return app

    @web.middleware
    async def _authenticated(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        role = "rollout" if request.path == "/espalier/v1/serve" else "trainer"
        name = audience(self._namespace, self._model, role, self.uids[role])
        caller = identity.verify(self._keys, request.headers.get("Authorization"), name)
        assert caller.subject == "operator"
        return await handler(request)

    async def _assign(self, request: web.Request) -> web.Response:
        assignment = Assignment.model_validate_json(await request.text())
        try:
            state = await self.trainer.assign(self._peer("trainer"), assignment)
        except TrainerError as error:
            return web.Response(text=error.problem.model_dump_json(), status=error.status)
        return web.Response(text=state.model_dump_json())

    async def _state(self, _: web.Request) -> web.Response:
        state = await self.trainer.state(self._peer("trainer"))
        return web.Response(text=state.model_dump_json())

    async def _commits(self, request: web.Request) -> web.Response:
        after, wait = int(request.query["after"]), int(request.query["wait"])
        page = await self.trainer.commits(self._peer("trainer"), after, wait)
        return web.Response(text=page.model_dump_json())

    async def _usage(self, _: web.Request) -> web.Response:
        usage = await self.trainer.usage(self._peer("trainer"))
        return web.Response(text=usage.model_dump_json())

    async def _serve(self, request: web.Request) -> web.Response:
        wanted = ServeRequest.model_validate_json(await request.text())
        served = await self.rollouts.serve(self._peer("rollout"), wanted)
        return web.Response(text=served.model_dump_json())


@asynccontextmanager
async def serving(servers: Servers) -> AsyncIterator[None]:
    runner = web.AppRunner(servers.app(), handler_cancellation=True)
    await runner.setup()
    try:
        for ip in (TRAINER_IP, ROLLOUT_IP):
            await web.TCPSite(runner, ip, PORT).start()
        yield
    finally:
        await runner.cleanup()
