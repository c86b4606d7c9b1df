"""A port of the gateway, whose connections are counted from the moment that they are accepted.

aiohttp's own sites take any number, and a TLS connection is hidden from it until its handshake is
over.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
from collections.abc import Coroutine
from functools import partial
from typing import cast

from aiohttp import web

from espalier.gateway import prometheus
from espalier.gateway.access.connections import Connection, Connections
from espalier.malformed_http import HTTP_MALFORMED, handlers

# Of a client that begins TLS and does not go on.
HANDSHAKE_SECONDS = 10.0
# Without descriptors, or where a client was gone before it was accepted.
PAUSE_SECONDS = 0.05
# Other tasks run after so many.
AT_ONCE = 32
# Closing then sends a reset and keeps nothing.
_NO_LINGER = struct.pack("ii", 1, 0)

_log = logging.getLogger(__name__)


class CountedSite(web.BaseSite):
    """Serves a runner at a port of all addresses."""

    def __init__(
        self,
        runner: web.AppRunner,
        connections: Connections,
        port: int,
        *,
        backlog: int,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(runner, ssl_context=ssl_context, backlog=backlog)
        self._connections = connections
        self._listener = _listener(port, backlog)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        """Its address as a URL."""
        host, port, *_ = self._listener.getsockname()
        return f"{'https' if self._ssl_context else 'http'}://[{host}]:{port}"

    @property
    def port(self) -> int:
        """The port, also where any was asked for."""
        found: int = self._listener.getsockname()[1]
        return found

    async def start(self) -> None:
        """Accepts from now on."""
        await super().start()
        self._run(self._accept())

    async def stop(self) -> None:
        """Accepts nothing more; what is open stays so."""
        await super().stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        loop, taken = asyncio.get_running_loop(), 0
        while True:
            try:
                accepted, address = await loop.sock_accept(self._listener)
            except OSError as error:
                _log.warning("a connection cannot be accepted", extra={"error": str(error)})
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            self._take(accepted, address[0])
            taken += 1
            if taken % AT_ONCE == 0:
                await asyncio.sleep(0)

    def _take(self, accepted: socket.socket, host: str) -> None:
        connection = self._connections.enter(host, accepted.close)
        if connection is None:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            accepted.close()
            return
        connection.close = self._run(self._serve(accepted, connection)).cancel

    async def _serve(self, accepted: socket.socket, connection: Connection) -> None:
        """Hands the connection to the protocol of HTTP, once TLS is spoken."""
        server, loop = self._runner.server, asyncio.get_running_loop()
        assert server is not None, "the runner is set up"
        tls = self._ssl_context

        handler = handlers(server, prometheus.REFUSED.labels(HTTP_MALFORMED).inc)

        def made() -> _Counted:
            return _Counted(handler(), connection, self._connections)

        try:
            await loop.connect_accepted_socket(
                made,
                accepted,
                ssl=tls,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if tls else None,
            )
        except (OSError, TimeoutError):
            # No TLS, or not in time.
            self._connections.leave(connection)
        except asyncio.CancelledError:
            self._connections.leave(connection)
            accepted.close()
            raise

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Counted(asyncio.Protocol):
    """aiohttp's protocol, whose end is noticed."""

    def __init__(
        self, inner: web.RequestHandler, connection: Connection, connections: Connections
    ) -> None:
        self._inner = inner
        self._connection = connection
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is none by its class.
        whole = cast(asyncio.Transport, transport)
        self._connection.close = whole.abort
        self._connection.unsent = partial(_unsent, whole)
        self._connections.answer(self._inner, self._connection)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.ended(self._inner)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> None:
        self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


def _unsent(transport: asyncio.Transport) -> int:
    try:
        return transport.get_write_buffer_size()
    except RuntimeError:
        # uvloop's, once it is closed.
        return 0


def _listener(port: int, backlog: int) -> socket.socket:
    """A socket of all addresses, by IPv4 and where there is any by IPv6."""
    if not socket.has_dualstack_ipv6():
        made = socket.create_server(("", port), backlog=backlog)
    else:
        made = socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
        )
    made.setblocking(False)
    return made
