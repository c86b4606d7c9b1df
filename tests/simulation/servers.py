"""The scripted trainer and rollouts behind real HTTP, at the address of a pod."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.typedefs import Handler
from dev.ports import own_network
from tests.simulation.scripted import ScriptedRollouts, ScriptedTrainer

from espalier import identity
from espalier.api.wire import Assignment, ServeRequest
from espalier.controllers.peer import PORT, Peer
from espalier.controllers.trainer_client import TrainerError

NETWORK = own_network(PORT)
TRAINER_IP = f"{NETWORK}.2"
ROLLOUT_IP = f"{NETWORK}.3"


class Servers:
    """Routes of the wire contract; every call must carry the operator's token for the model."""

    def __init__(
        self, namespace: str, model: str, public_key: str, rollout_ip: str = ROLLOUT_IP
    ) -> None:
        self.trainer = ScriptedTrainer()
        self.rollouts = ScriptedRollouts()
        self.trainer.up = {TRAINER_IP}
        self.rollouts.up = {ROLLOUT_IP}
        self._peer = Peer(namespace, model, TRAINER_IP)
        self._rollout_ip = rollout_ip
        self._public_key = public_key

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._authenticated])
        app.router.add_post("/assign", self._assign)
        app.router.add_get("/train/state", self._state)
        app.router.add_get("/commits", self._commits)
        app.router.add_post("/espalier/v1/serve", self._serve)
        return app

    @web.middleware
    async def _authenticated(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        audience = f"{self._peer.namespace}/{self._peer.model}"
        caller = identity.verify(self._public_key, request.headers.get("Authorization"), audience)
        assert caller.subject == "operator"
        return await handler(request)

    async def _assign(self, request: web.Request) -> web.Response:
        assignment = Assignment.model_validate_json(await request.text())
        try:
            state = await self.trainer.assign(self._peer, assignment)
        except TrainerError as error:
            return web.Response(text=error.problem.model_dump_json(), status=error.status)
        return web.Response(text=state.model_dump_json())

    async def _state(self, _: web.Request) -> web.Response:
        return web.Response(text=(await self.trainer.state(self._peer)).model_dump_json())

    async def _commits(self, request: web.Request) -> web.Response:
        after, wait = int(request.query["after"]), int(request.query["wait"])
        page = await self.trainer.commits(self._peer, after, wait)
        return web.Response(text=page.model_dump_json())

    async def _serve(self, request: web.Request) -> web.Response:
        wanted = ServeRequest.model_validate_json(await request.text())
        peer = Peer(self._peer.namespace, self._peer.model, self._rollout_ip)
        return web.Response(text=(await self.rollouts.serve(peer, wanted)).model_dump_json())


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
