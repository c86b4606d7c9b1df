"""Inflates a compressed body, never beyond a limit: a hundred bytes can stand for a gigabyte."""

from __future__ import annotations

import asyncio

import zstandard
from aiohttp import hdrs, web

from espalier.gateway.access.request_limits import HELD, MAX_INFLATED_BYTES, ZSTD, too_large
from espalier.gateway.problems import RefusalError

# A block of four bytes stands for 128 KiB, so no part can become more than 16 MiB at once.
PART_BYTES = 512


async def inflated(request: web.Request, body: bytes) -> bytes:
    """The body as it was before it was compressed; as it is where it was not.

    Raises:
        RefusalError: 400, it is no whole frame of zstd; 413, it is over MAX_INFLATED_BYTES; 503
            without room.
    """
    if request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower() != ZSTD:
        return body
    plain = await asyncio.to_thread(inflate, body)
    await request[HELD].take(len(plain))
    return plain


def inflate(body: bytes) -> bytes:
    """A whole frame, inflated; RefusalError 400 or 413."""
    found = bytearray()
    inflater = zstandard.ZstdDecompressor(max_window_size=MAX_INFLATED_BYTES).decompressobj()
    try:
        for start in range(0, len(body), PART_BYTES):
            found += inflater.decompress(body[start : start + PART_BYTES])
            if len(found) > MAX_INFLATED_BYTES:
                raise too_large(MAX_INFLATED_BYTES)
    except zstandard.ZstdError as error:
        raise _broken(str(error)) from error
    if not inflater.eof or inflater.unused_data:
        raise _broken("it is no whole frame")
    return bytes(found)


def _broken(why: str) -> RefusalError:
    return RefusalError(
        400, "InvalidZstd", f"the body is not zstd: {why}", "Send it again, or uncompressed"
    )
