"""Training commands without an idempotency key, such as HUD's, and the delivery of their answers.

The trainer gives such a command a key and applies an equal one again only after the first answer
has arrived (``espalier.trainer.engine.unkeyed``). HTTP has a sign of that: the answer carries
``Connection: close``, and a client that has read it to its end closes the connection.
"""

from __future__ import annotations

import asyncio
import logging
import socket

import aiohttp
from aiohttp import web

from espalier.api.wire.headers import IDEMPOTENCY_KEY
from espalier.gateway.access.answer_writer import write_answer
from espalier.gateway.access.auth import User
from espalier.gateway.access.pod_tokens import TokenIssuer
from espalier.gateway.world.pod_addresses import PodAddress
from espalier.gateway.world.world import NamespacedName
from espalier.podclient import PodFaultError

# The commands that change a trainer's state, and must therefore be applied once.
COMMANDS = frozenset({"forward-backward", "forward", "backward", "zero-grad", "optim-step"})
CLOSE_SECONDS = 5.0
REPORT_ATTEMPTS = 3
REPORT_SECONDS = 2.0

_log = logging.getLogger(__name__)


def is_unkeyed(request: web.Request) -> bool:
    """Whether the request is a training command without an idempotency key."""
    command = request.match_info.get("command")
    return command in COMMANDS and IDEMPOTENCY_KEY not in request.headers


def client_name(user: User) -> str:
    """The name by which a trainer keeps the unkeyed commands of one user."""
    return f"unkeyed-{user.digest}"


async def write_until_closed(request: web.Request, response: web.Response) -> bool:
    """Writes the whole answer; True once the client has closed its connection in order.

    False when the connection broke, or stayed open for ``CLOSE_SECONDS``.

    Raises:
        ConnectionError: the client was gone before the answer, or did not read it.
    """
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client is gone")
    # aiohttp would take the client's close for a cancellation of this handler.
    transport.pause_reading()
    descriptor = socket.dup(transport.get_extra_info("socket").fileno())
    with socket.socket(fileno=descriptor) as connection:
        connection.setblocking(False)
        response.force_close()
        await write_answer(request, response)
        return await _closed_by_client(connection)


async def _closed_by_client(connection: socket.socket) -> bool:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            received = await asyncio.get_running_loop().sock_recv(connection, 1)
    except (OSError, TimeoutError):
        return False
    # Bytes would be another request, which a client must not send after ``Connection: close``.
    return not received


class DeliveryReports:
    """Tells trainers which answers have arrived."""

    def __init__(self, session: aiohttp.ClientSession, tokens: TokenIssuer) -> None:
        self._session = session
        self._tokens = tokens

    async def send(self, model: NamespacedName, trainer: PodAddress, key: str) -> None:
        """Reports that the answer under this key has arrived; logs a report that failed thrice."""
        failure = ""
        for _ in range(REPORT_ATTEMPTS):
            try:
                await self._post(model, trainer, key)
            except (aiohttp.ClientError, TimeoutError, PodFaultError) as error:
                failure = str(error) or type(error).__name__
            else:
                return
        _log.warning(
            "the trainer took no report of a delivery: an equal command counts as resent",
            extra={"model": str(model), "key": key, "error": failure},
        )

    async def _post(self, model: NamespacedName, trainer: PodAddress, key: str) -> None:
        async with self._session.post(
            f"http://{trainer.address}/train/delivered",
            headers=self._tokens.header(model, trainer) | {IDEMPOTENCY_KEY: key},
            timeout=aiohttp.ClientTimeout(total=REPORT_SECONDS),
        ) as answer:
            answer.raise_for_status()
