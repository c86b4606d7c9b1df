"""How many bytes the gateway holds at once."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.gateway.conftest import Behaviour, Gateway, Upstream
from tests.gateway.test_completions import ASK, serve

from espalier.gateway.access import answer_writer, pod_answers, request_body
from espalier.gateway.access.byte_budget import (
    UNLIMITED_BYTES,
    ByteBudget,
    ByteBudgets,
    memory_bytes,
)
from espalier.gateway.access.quotas import Limits
from espalier.gateway.app import SERVER, make_app
from espalier.gateway.problems import RefusalError
from espalier.gateway.routes import completions

Start = Callable[[Behaviour], Awaitable[Upstream]]


async def test_what_does_not_fit_is_refused_until_there_is_room() -> None:
    budget = ByteBudget("requests", 10)
    first, second = budget.hold(), budget.hold()
    await first.take(4)
    await first.take(4)
    with pytest.raises(RefusalError) as refused:
        await second.take(3)
    assert (refused.value.status, refused.value.reason) == (503, "GatewayBusy")
    assert refused.value.retry_after
    await second.take(2)
    waiting = asyncio.create_task(budget.hold().take(8, seconds=30))
    await asyncio.sleep(0)
    assert not waiting.done()
    first.release()
    # Releasing twice gives nothing twice.
    first.release()
    await waiting
    with pytest.raises(RefusalError):
        await budget.hold().take(1)


async def test_who_waits_for_room_is_told_when_it_does_not_come() -> None:
    with pytest.raises(RefusalError, match="as many bytes of answers as it has memory for"):
        await ByteBudget("answers", 1).hold().take(2, seconds=0.01)


def test_the_budgets_are_shares_of_the_containers_memory(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    assert memory_bytes(limit) <= UNLIMITED_BYTES
    limit.write_text("max\n")
    assert memory_bytes(limit) <= UNLIMITED_BYTES
    limit.write_text(f"{384 * 2**20}\n")
    assert memory_bytes(limit) == 384 * 2**20


async def small(gateway: Gateway, budgets: ByteBudgets) -> None:
    """The same gateway with other budgets."""
    await gateway.server.close()
    alone = Limits(body_percent=100)
    context = dataclasses.replace(gateway.context, budgets=budgets, limits=alone)
    gateway.server = TestServer(make_app(context, lambda: ""))
    await gateway.server.start_server(auto_decompress=SERVER["auto_decompress"])


async def test_requests_that_wait_for_their_answers_hold_their_room_and_give_it_back(
    gateway: Gateway, upstream: Start
) -> None:
    begun, answered = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        begun.set()
        await answered.wait()
        return web.json_response({"choices": []})

    serve(gateway, (await upstream(slow)).port)
    await small(gateway, ByteBudgets(ByteBudget("requests", 1500), ByteBudget("answers", 2**20)))
    body = ASK | {"prompt": "x" * 1000}
    first = asyncio.create_task(gateway.post("/v1/completions", body))
    await begun.wait()
    reply = await gateway.post("/v1/completions", body)
    assert (reply.status, (await reply.json())["error"]["code"]) == (503, "GatewayBusy")
    assert reply.headers["Retry-After"]
    answered.set()
    assert (await first).status == 200
    assert (await gateway.post("/v1/completions", body)).status == 200


async def test_an_answer_waits_for_the_room_that_others_take(
    gateway: Gateway, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def large(request: web.Request) -> web.Response:
        begun.set()
        return web.json_response({"choices": [], "text": "x" * 1000})

    serve(gateway, (await upstream(large)).port)
    budget = ByteBudget("answers", 4000)
    await small(gateway, ByteBudgets(ByteBudget("requests", 2**20), budget))
    other = budget.hold()
    await other.take(3000)
    pending = asyncio.create_task(gateway.post("/v1/completions", ASK))
    await begun.wait()
    other.release()
    assert (await pending).status == 200
    monkeypatch.setattr(pod_answers, "ROOM_SECONDS", 0.01)
    await other.take(3000)
    reply = await gateway.post("/v1/completions", ASK)
    assert (reply.status, (await reply.json())["error"]["code"]) == (503, "GatewayBusy")


async def test_a_body_that_stops_coming_is_a_408(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(gateway)
    monkeypatch.setattr(request_body, "BODY_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
    head = f"Host: g\r\nAuthorization: Bearer {gateway.users.trainer}\r\nContent-Length: 100\r\n"
    writer.write(f"POST /v1/completions HTTP/1.1\r\n{head}\r\n{{".encode())
    assert b" 408 " in await reader.readline()
    writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET /v1/models HTTP/1.1\r\nHost:"])
async def test_a_connection_without_a_request_is_closed(gateway: Gateway, sent: bytes) -> None:
    await gateway.server.close()
    gateway.server = TestServer(make_app(gateway.context, lambda: ""))
    kept = {"keepalive_timeout": SERVER["keepalive_timeout"] / 500}
    await gateway.server.start_server(**kept)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
    writer.write(sent)
    async with asyncio.timeout(30):
        assert await reader.read() == b""
    writer.close()


async def test_a_client_that_does_not_read_its_answer_is_cut_off(
    gateway: Gateway, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def large(request: web.Request) -> web.Response:
        return web.json_response({"choices": [], "text": "x" * (16 * 2**20)})

    serve(gateway, (await upstream(large)).port)
    budget = ByteBudget("answers", 64 * 2**20)
    await small(gateway, ByteBudgets(ByteBudget("requests", 2**20), budget))
    monkeypatch.setattr(answer_writer, "WRITE_SECONDS", 0.2)
    cut_off, write = asyncio.Event(), answer_writer.write_answer

    async def watched(request: web.Request, response: web.Response) -> None:
        with pytest.raises(ConnectionResetError, match="did not read"):
            await write(request, response)
        cut_off.set()
        raise ConnectionResetError

    monkeypatch.setattr(completions, "write_answer", watched)
    body = b'{"model":"arith","prompt":""}'
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port, limit=1024)
    head = f"Host: g\r\nAuthorization: Bearer {gateway.users.trainer}\r\nContent-Length: "
    writer.write(f"POST /v1/completions HTTP/1.1\r\n{head}{len(body)}\r\n\r\n".encode() + body)
    async with asyncio.timeout(60):
        await cut_off.wait()
    # Its budget is free again.
    await budget.hold().take(budget.capacity, seconds=10)
    writer.transport.abort()
