"""Write a whole answer to its client within a bounded time."""

from __future__ import annotations

import asyncio

from aiohttp import web

# A client that stops reading would hold its answer's memory forever: 64 MiB in 300 s are 220 KB/s.
WRITE_SECONDS = 300.0


async def write_answer(request: web.Request, response: web.Response) -> None:
    """Writes the answer while its bytes are held; a client that does not read it is cut off.

    Raises:
        ConnectionError: the client is gone, or was cut off.
    """
    try:
        async with asyncio.timeout(WRITE_SECONDS):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError as error:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client did not read its answer") from error
