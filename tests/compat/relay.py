"""The network between a client and the gateway, which can be cut."""

from __future__ import annotations

import asyncio


class Relay:
    """Passes bytes on, and loses connections at one end or at both."""

    def __init__(self) -> None:
        self.target = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        # The writers to clients, each with the writer to the gateway.
        self._open: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}
        self._silent: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for gateway in self._silent:
            gateway.transport.abort()

    def cut(self) -> None:
        """Resets every open connection at both ends."""
        for client, gateway in self._open.items():
            client.transport.abort()
            gateway.transport.abort()

    def fall_silent(self) -> None:
        """Resets every open connection at the client's end alone.

        The relay's host acknowledges what the gateway still writes, and passes on nothing.
        """
        for client, gateway in self._open.items():
            self._silent.add(gateway)
            client.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inward, outward = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._open[writer] = outward
        try:
            await asyncio.gather(self._pump(reader, outward), self._pump(inward, writer))
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            outward.transport.abort()
        finally:
            del self._open[writer]

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(2**16):
                if self._open.get(sink) not in self._silent:
                    sink.write(data)
                    await sink.drain()
        except OSError:
            if sink not in self._silent:
                raise
            return
        if sink not in self._silent:
            sink.close()
