"""Two processes of the gateway before one trainer: either answers what the other has begun."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import torch
from aiohttp import web
from dev.apiserver import ApiServer
from dev.ports import free_port
from tests.gateway.conftest import KEYS, PRIVATE_KEY, new_users
from tests.gateway.process import PATIENCE_SECONDS, before_a_trainer, started, until
from tests.tinker.messages import forward_backward
from tests.trainer import tinker, tiny
from tests.trainer.test_service import ended, make_engine
from tests.trainer.tiny import Volume

from espalier.tinker import messages_pb2 as pb
from espalier.tinker.results import PROTOBUF
from espalier.trainer.http.service import Service


@asynccontextmanager
async def trainer(volume: Path, name: str, port: int) -> AsyncIterator[Service]:
    """A real trainer of the tiny model at a port, assigned."""
    torch.set_num_threads(1)
    base = tiny.write_base(volume, volume / "source")
    service = Service(KEYS, name)
    runner = web.AppRunner(service.app())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()

    def make(publish: Any) -> Any:
        engine = make_engine(Volume(volume, base), tiny.policy(volume, base), publish)
        engine.assign(tiny.assignment())
        return engine

    await service.start(make)
    yield service
    await runner.cleanup()
    await ended(service)


class Front:
    """One gateway, as Tinker's client calls it."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self._session = session
        self.url = f"http://127.0.0.1:{port}"

    async def post(self, route: str, body: Any) -> dict[str, Any]:
        packed = isinstance(body, bytes)
        async with self._session.post(
            f"{self.url}/api/v1/{route}",
            data=body if packed else json.dumps(body).encode(),
            headers={"Content-Type": PROTOBUF if packed else "application/json"},
        ) as reply:
            assert reply.status == 200, await reply.text()
            found: dict[str, Any] = await reply.json()
            return found

    async def result(self, promised: dict[str, Any]) -> bytes:
        """What a promise comes to, polled as the SDK polls."""
        body, deadline = {"request_id": promised["request_id"]}, time.monotonic() + PATIENCE_SECONDS
        while True:
            url = f"{self.url}/api/v1/retrieve_future"
            async with self._session.post(url, json=body) as reply:
                answer = await reply.read()
                if reply.status == 200:
                    return answer
            assert reply.status == 408, answer
            assert time.monotonic() < deadline, answer


async def test_a_gateway_goes_on_with_what_another_began_and_died_of(
    apiserver: ApiServer, tmp_path: Path
) -> None:
    users = new_users(apiserver)
    space, port = users.namespace, free_port()
    name, environment = before_a_trainer(apiserver, space, port, PRIVATE_KEY)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        service = await enter(trainer(tmp_path, name, port))
        headers = {"Authorization": f"Bearer {users.trainer}"}
        session = await enter(aiohttp.ClientSession(headers=headers))
        ports = [free_port() for _ in range(2)]
        log = stack.enter_context((tmp_path / "gateways.log").open("wb"))
        processes = [
            await enter(
                started(
                    environment
                    | {"ESPALIER_PORT": str(own), "ESPALIER_METRICS_PORT": str(free_port())},
                    log,
                )
            )
            for own in ports
        ]
        one, other = (Front(session, own) for own in ports)
        for front in (one, other):
            await until(session, f"{front.url}/readyz", '{"unready": ""}')

        # A session of the one, whose model is made at the other.
        begun = {"tags": [], "sdk_version": "0.38.0", "type": "create_session"}
        found = await one.post("create_session", begun)
        asked = {"session_id": found["session_id"], "model_seq_id": 0, "base_model": "arith"}
        asked |= {"lora_config": {"rank": 16}, "type": "create_model"}
        model = json.loads(await one.result(await other.post("create_model", asked)))["model_id"]

        # Chunks by either, and their results by the other.
        bodies = [forward_backward(seq, tinker.batch(seq), model_id=model) for seq in (1, 2)]
        second = await other.post("forward_backward", bodies[1])
        first = await one.post("forward_backward", bodies[0])
        for front, promised in ((other, first), (one, second)):
            output = pb.ForwardBackwardOutput.FromString(await front.result(promised))
            assert output.metrics["tokens:sum"] > 0

        # The one is killed while a step that it took awaits its result.
        step = await one.post("optim_step", json.loads(tinker.optim_step(3, model)))
        waiting = asyncio.create_task(one.result(step))
        processes[0].send_signal(signal.SIGKILL)
        await processes[0].wait()
        await asyncio.gather(waiting, return_exceptions=True)
        # The client sends it again, and asks for it, at the other.
        again = await other.post("optim_step", json.loads(tinker.optim_step(3, model)))
        assert again == step
        metrics = json.loads(await other.result(step))["metrics"]
        assert metrics["step"] == 1.0
        assert json.loads(await other.result(again))["metrics"] == metrics
        assert service._engine is not None
        assert len(service._engine.state.commits) == 1
