"""Writes answers to their clients within a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

# A client that stops reading would hold its answer's memory, or a pod's connection, forever:
# 64 MiB in 300 s are 220 KB/s.
WRITE_SECONDS = 300.0


async def write_answer(request: web.Request, response: web.Response) -> None:
    """Writes the answer while its bytes are held; a client that does not read it is cut off.

    Raises:
        ConnectionError: the client is gone, or was cut off.
    """
    async with _in_time(request):
        await response.prepare(request)
        await response.write_eof()


async def write_part(request: web.Request, response: web.StreamResponse, part: bytes) -> None:
    """Writes a part of an answer that has begun; raises as ``write_answer`` does."""
    async with _in_time(request):
        await response.write(part)


@asynccontextmanager
async def _in_time(request: web.Request) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(WRITE_SECONDS):
            yield
    except TimeoutError as error:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client did not read its answer") from error
