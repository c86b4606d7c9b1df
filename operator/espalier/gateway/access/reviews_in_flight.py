"""Bounds what the API server is asked at once on behalf of callers.

Whoever sends unknown tokens makes the gateway ask, and the API server serves others too. Reviews of
tokens and of rights have bounds of their own: those whose token is known do not wait for a flood.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from espalier.gateway.problems import over

# A token costs the API server a signature, and a right a look into its cache.
TOKENS_AT_ONCE = 16
TOKENS_WAITING = 256
# Of rights as many wait as there are: only callers who are known ask, one for each model at most.
RIGHTS_AT_ONCE = 64


class ReviewsInFlight:
    """A bounded number of reviews, and of those that wait for one: ``waiting``, None for any."""

    def __init__(self, at_once: int, waiting: int | None = None) -> None:
        self._room = asyncio.Semaphore(at_once)
        self._most = math.inf if waiting is None else at_once + waiting
        self._count = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits for a turn; RefusalError 429 where too many wait already."""
        if self._count >= self._most:
            raise over(
                "TooManyReviews",
                f"{self._count} requests with tokens that are not known yet wait to be reviewed",
                "Send it again: a token that was reviewed is known for a minute",
            )
        self._count += 1
        try:
            async with self._room:
                yield
        finally:
            self._count -= 1
