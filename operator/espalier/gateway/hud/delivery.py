"""Whether an answer has reached its client, and the word of it to the trainer.

An answer counts as delivered when the client's host has acknowledged its last byte: from then on
an equal command is a new one (see ``espalier.trainer.engine.unkeyed``).
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import web

from espalier.gateway.context import REQUEST_ID
from espalier.podclient import PodFaultError

ACKNOWLEDGED_SECONDS = 5.0
# A client that reads no more would hold its answer for good: 64 MiB in it are 220 KB/s.
WRITE_SECONDS = 300.0
POLL_SECONDS = 0.001
REPORT_ATTEMPTS = 3
REPORT_SECONDS = 2.0
# States of a connection (include/net/tcp_states.h) in which the other side did not reset it.
_ALIVE = frozenset({1, 8})  # ESTABLISHED, CLOSE_WAIT

Report = Callable[[], Awaitable[None]]


async def send(request: web.Request, response: web.Response) -> bool:
    """Sends the whole answer; True once the client's host has it."""
    transport = request.transport
    raw = transport.get_extra_info("socket") if transport is not None else None
    if transport is None or raw is None or transport.is_closing():
        return False
    # A client that closes at once takes the transport's own descriptor away.
    held = socket.socket(fileno=socket.dup(raw.fileno()))
    try:
        await write(request, response)
        return await _acknowledged(transport, held)
    except ConnectionError:
        return False
    finally:
        held.close()


async def write(request: web.Request, response: web.Response) -> None:
    """Writes the whole answer while its room is held; a client that does not read it is cut off.

    Raises:
        ConnectionError: the client is gone, or was cut off.
    """
    response.headers["X-Request-Id"] = request[REQUEST_ID]
    try:
        async with asyncio.timeout(WRITE_SECONDS):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError as error:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client did not read its answer") from error


async def _acknowledged(transport: asyncio.Transport, held: socket.socket) -> bool:
    deadline = asyncio.get_running_loop().time() + ACKNOWLEDGED_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        if _state(held) not in _ALIVE:
            return False
        if not transport.get_write_buffer_size() and not _unacknowledged(held):
            # Looked at again: a reset empties the queue too.
            return _state(held) in _ALIVE
        await asyncio.sleep(POLL_SECONDS)
    return False


def _unacknowledged(held: socket.socket) -> int:
    """Bytes that the other side has not acknowledged (SIOCOUTQ)."""
    found: int = struct.unpack("i", fcntl.ioctl(held.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]
    return found


def _state(held: socket.socket) -> int:
    return held.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


class Reports:
    """Words of delivery on their way to trainers; lost ones are sent again, then given up."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, report: Report) -> None:
        """Reports in the background: the client has its answer and waits for nothing."""
        task = asyncio.create_task(_repeat(report))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _repeat(report: Report) -> None:
    for _ in range(REPORT_ATTEMPTS):
        try:
            async with asyncio.timeout(REPORT_SECONDS):
                await report()
                break
        except (aiohttp.ClientError, TimeoutError, PodFaultError):
            continue
