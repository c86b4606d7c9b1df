"""Keeps completions in flight at a gateway until it is killed; its import takes next to nothing.

python -m bench.gateway.flood URL TOKEN REQUESTS
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import uvloop

# Of different lengths, so that they do not all end at once.
TOKENS = (80, 160)

_numbers = itertools.count()


def asked(tokens: int) -> dict[str, Any]:
    """A completion of exactly so many tokens, with a prompt of its own."""
    prompt = f"{next(_numbers)} + {random.random()}?"
    return {"model": "arith", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}


@asynccontextmanager
async def calling(token: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A session of any number of connections that waits for every answer."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers={"Authorization": f"Bearer {token}"},
        timeout=aiohttp.ClientTimeout(total=None),
    ) as session:
        yield session


async def flood(url: str, token: str, requests: int) -> None:
    """Keeps so many in flight."""
    async with calling(token) as session:

        async def again() -> None:
            while True:
                body = asked(random.randint(*TOKENS))
                async with session.post(f"{url}/v1/completions", json=body) as reply:
                    reply.raise_for_status()
                    await reply.read()

        await asyncio.gather(*(again() for _ in range(requests)))


if __name__ == "__main__":
    uvloop.run(flood(sys.argv[1], sys.argv[2], int(sys.argv[3])))
