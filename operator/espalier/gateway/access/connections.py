"""How many connections one address may have open. Where it has the most, its longest idle one goes.

Behind an ingress or a NAT many clients have one address: what is in use there is never closed, so
that whoever holds idle connections takes no room from those who send requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network

from aiohttp import web

from espalier.gateway import prometheus

# One client has all addresses of such a network.
IPV6_CLIENT_BITS = 64
REASON = "TooManyConnections"
# A flood is told once in so long.
TOLD_SECONDS = 60.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Connection:
    """An open connection of an address.

    ``close`` closes it at once; ``requests`` are those under way, and ``unsent`` tells the bytes of
    an answer that its client has still to take.
    """

    address: str
    close: Callable[[], object]
    requests: int = 0
    unsent: Callable[[], int] = lambda: 0


@dataclass
class _Client:
    """The connections of one address; those without a request, the longest idle first."""

    open: int = 0
    idle: dict[Connection, None] = field(default_factory=dict)


class Connections:
    """The open connections; ``most`` of one address, 0 for any number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._clients: dict[str, _Client] = {}
        self._of: dict[asyncio.BaseProtocol, Connection] = {}
        self._told = float("-inf")

    def enter(self, host: str, close: Callable[[], object]) -> Connection | None:
        """A new connection of a host; None where all others of its address are in use."""
        address = client_of(host)
        client = self._clients.setdefault(address, _Client())
        if self._most and client.open >= self._most:
            prometheus.REFUSED.labels(REASON).inc()
            self._tell(address)
            longest = next((one for one in client.idle if not one.unsent()), None)
            if longest is None:
                return None
            self.leave(longest)
            longest.close()
            # The last one of an address takes its entry with it.
            client = self._clients.setdefault(address, client)
        connection = Connection(address, close)
        client.open += 1
        client.idle[connection] = None
        return connection

    def leave(self, connection: Connection) -> None:
        """It is closed; a second time is nothing."""
        client = self._clients.get(connection.address)
        if client is None or connection.requests < 0:
            return
        connection.requests = -1
        client.idle.pop(connection, None)
        client.open -= 1
        if not client.open:
            del self._clients[connection.address]

    def answer(self, protocol: asyncio.BaseProtocol, connection: Connection) -> None:
        """Says which protocol answers the requests of a connection."""
        self._of[protocol] = connection

    def ended(self, protocol: asyncio.BaseProtocol) -> None:
        """A protocol has lost its connection."""
        self.leave(self._of.pop(protocol))

    @web.middleware
    async def in_use(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Counts a request; a connection that some other site accepted is none of ours."""
        connection = self._of.get(request.protocol)
        if connection is None:
            return await handler(request)
        self._begin(connection)
        try:
            return await handler(request)
        finally:
            self._end(connection)

    def _begin(self, connection: Connection) -> None:
        if connection.requests >= 0:
            connection.requests += 1
            self._clients[connection.address].idle.pop(connection, None)

    def _end(self, connection: Connection) -> None:
        if connection.requests > 0:
            connection.requests -= 1
            if not connection.requests:
                self._clients[connection.address].idle[connection] = None

    def _tell(self, address: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._told >= TOLD_SECONDS:
            self._told = now
            _log.warning(
                "an address has the most connections that it may: its idle ones are closed",
                extra={"address": address, "most": self._most},
            )


def client_of(host: str) -> str:
    """What counts as one client: an IPv4 address, or the network of an IPv6 address."""
    address = ip_address(host.partition("%")[0])
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ip_network((address, IPV6_CLIENT_BITS), strict=False))
