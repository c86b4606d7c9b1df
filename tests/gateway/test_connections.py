"""Connections of one address: the longest idle one goes, and none that is in use."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from tests.security.test_certificate import Mounted, certificate_and_key

from espalier.gateway.access.connections import Connections, client_of
from espalier.gateway.app import SERVER
from espalier.gateway.certificate import Certificate
from espalier.gateway.listener import CountedSite

ASK = b"GET /%s HTTP/1.1\r\nHost: g\r\n\r\n"
# More than the sockets of both sides hold.
LARGE = b" " * 2**26
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Port:
    """A port that answers at once, or at ``/slow`` once ``answers`` is set."""

    def __init__(self, most: int) -> None:
        self.connections = Connections(most)
        self.answers = asyncio.Event()
        self.number = 0
        self._opened: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def open(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Port]:
        app = web.Application(middlewares=[self.connections.in_use])
        app.router.add_get("/{what}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1, **SERVER)
        await runner.setup()
        site = CountedSite(runner, self.connections, 0, backlog=128, ssl_context=tls)
        await site.start()
        self.number = site.port
        try:
            yield self
        finally:
            self.answers.set()
            await runner.cleanup()
            for writer in self._opened:
                writer.close()

    async def connect(self, client: str = "127.0.0.1") -> Ends:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.number, local_addr=(client, 0)
        )
        self._opened.append(writer)
        return reader, writer

    async def _answer(self, request: web.Request) -> web.Response:
        if request.path == "/slow":
            await self.answers.wait()
        if request.path == "/large":
            return web.Response(body=LARGE)
        return web.Response(text="done")


async def answered(ends: Ends, what: str = "quick") -> bool:
    ends[1].write(ASK % what.encode())
    return await done(ends)


async def done(ends: Ends) -> bool:
    """Whether an answer comes; the connection is closed without one otherwise."""
    async with asyncio.timeout(60):
        try:
            await ends[0].readuntil(b"done")
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
    return True


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_client_is_an_ipv4_address_or_a_network_of_ipv6(host: str, client: str) -> None:
    assert client_of(host) == client


async def test_the_longest_idle_connection_makes_room_and_one_in_use_stays() -> None:
    async with Port(2).open() as port:
        used, idle = await port.connect(), await port.connect()
        assert await answered(idle)
        used[1].write(ASK % b"slow")
        # It is in use once this has been answered on the other.
        assert await answered(idle)
        late = await port.connect()
        assert await answered(late)
        assert not await answered(idle)
        late[1].write(ASK % b"slow")
        other = await port.connect("127.0.0.2")
        assert await answered(other)
        # Now both are in use.
        assert not await answered(await port.connect())
        port.answers.set()
        assert [await done(one) for one in (used, late)] == [True, True]
        assert await answered(other)


async def test_a_connection_whose_answer_is_not_all_sent_is_in_use() -> None:
    async with Port(1).open() as port:
        reader, writer = await port.connect()
        writer.write(ASK % b"large")
        await reader.readuntil(b"\r\n\r\n")
        assert not await answered(await port.connect())
        assert await reader.readexactly(len(LARGE)) == LARGE


async def test_who_goes_leaves_room_and_without_a_limit_everybody_stays() -> None:
    async with Port(1).open() as port:
        for _ in range(3):
            ends = await port.connect()
            assert await answered(ends, "slow" if port.answers.is_set() else "quick")
            ends[1].close()
            await ends[1].wait_closed()
        kept = await port.connect()
        assert await answered(kept)
    async with Port(0).open() as port:
        opened = [await port.connect() for _ in range(64)]
        assert all([await answered(one) for one in opened])


async def test_a_client_that_begins_no_tls_is_counted_from_the_start(tmp_path: Path) -> None:
    mounted = Mounted(tmp_path)
    chain, key = certificate_and_key()
    mounted.put(chain, key)
    trusts = ssl.create_default_context(cadata=chain.decode())
    async with Port(1).open(Certificate(tmp_path).context) as port:
        mute = await port.connect()
        async with aiohttp.ClientSession() as session:
            url = f"https://localhost:{port.number}/quick"
            async with session.get(url, ssl=trusts) as reply:
                assert await reply.text() == "done"
        assert not await done(mute)
