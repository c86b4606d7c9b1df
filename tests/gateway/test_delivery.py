"""When the answer to a command without a key counts as delivered, and who learns of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web
from tests.gateway.conftest import Behaviour, Gateway, Upstream
from tests.gateway.test_training import training

from espalier.gateway.app import SERVER
from espalier.gateway.hud import delivery
from espalier.gateway.hud.delivery import write_until_closed

Start = Callable[[Behaviour], Awaitable[Upstream]]
REQUEST = b"POST / HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\n\r\n"
BACKWARD = "/v1/models/arith/train/forward-backward"
RESULT = {"metrics": {"loss:sum": 1.0}, "num_datums": 1}


@dataclass
class Server:
    """Answers every request with a body of this size; ``delivered`` has what became of each."""

    size: int = 100
    port: int = 0
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    delivered: asyncio.Queue[bool] = field(default_factory=asyncio.Queue)

    async def handle(self, request: web.Request) -> web.Response:
        response = web.Response(body=b"x" * self.size)
        self.answering.set()
        self.delivered.put_nowait(await write_until_closed(request, response))
        return response


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_post("/", made.handle)
    runner = web.AppRunner(app, **SERVER)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


async def outcome(server: Server) -> bool:
    async with asyncio.timeout(60):
        return await server.delivered.get()


@pytest.mark.parametrize("size", [100, 16 * 2**20])
async def test_a_client_that_closes_after_its_answer_has_had_it(server: Server, size: int) -> None:
    server.size = size
    # A client that keeps its connections closes this one because the answer says so.
    async with aiohttp.ClientSession() as session:
        async with session.post(f"http://127.0.0.1:{server.port}/") as answer:
            assert answer.headers["Connection"] == "close"
            assert len(await answer.read()) == size
        assert await outcome(server)


async def test_a_client_that_keeps_its_connection_open_may_not_have_its_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "CLOSE_SECONDS", 0.2)
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(REQUEST)
    assert not await outcome(server)
    writer.close()


async def test_a_connection_that_is_reset_may_have_lost_its_answer(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    # Reading nothing, a client that dies resets its connection.
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(REQUEST)
    await server.answering.wait()
    await asyncio.sleep(0.1)
    writer.transport.abort()
    assert not await outcome(server)
    del reader


async def test_the_trainer_learns_once_of_a_delivered_answer(
    gateway: Gateway, upstream: Start
) -> None:
    reported = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/train/delivered":
            reported.set()
            return web.Response(status=204)
        return web.json_response(RESULT, headers={"Idempotency-Key": "unkeyed-1/7"})

    trainer = await upstream(answer)
    training(gateway, trainer.port)
    reply = await gateway.post(BACKWARD, {"inputs": []})
    assert await reply.json() == RESULT
    async with asyncio.timeout(60):
        await reported.wait()
    command, *reports = [r for r in trainer.requests if r.path != "/train/state"]
    assert command.headers["Espalier-Client"].startswith("unkeyed-")
    assert [(r.path, r.headers["Idempotency-Key"]) for r in reports] == [
        ("/train/delivered", "unkeyed-1/7")
    ]


async def test_a_report_that_fails_is_sent_again(gateway: Gateway, upstream: Start) -> None:
    reported = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        if request.path != "/train/delivered":
            return web.json_response(RESULT, headers={"Idempotency-Key": "unkeyed-1/7"})
        if len(trainer.requests) < 4:
            return web.Response(status=503)
        reported.set()
        return web.Response(status=204)

    trainer = await upstream(answer)
    training(gateway, trainer.port)
    await (await gateway.post(BACKWARD, {"inputs": []})).read()
    async with asyncio.timeout(60):
        await reported.wait()


async def test_a_command_with_a_key_keeps_its_connection_and_needs_no_report(
    gateway: Gateway, upstream: Start
) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.json_response(RESULT)

    trainer = await upstream(answer)
    training(gateway, trainer.port)
    reply = await gateway.post(BACKWARD, {"inputs": []}, **{"Idempotency-Key": "s/1"})
    assert await reply.json() == RESULT
    assert "Connection" not in reply.headers
    assert [request.path for request in trainer.requests] == ["/train/forward-backward"]
