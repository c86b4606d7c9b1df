"""What one caller may take of one model: requests at once, and tokens a minute.

A request beyond it waits a moment for room and is then a 429 with ``Retry-After``, so that a client
that does not obey is slowed down all the same. Tokens are counted when they are known, so a caller
may spend more than a minute's worth once, and is let in again when that has been earned back.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from espalier.gateway.access.auth import User
from espalier.gateway.problems import RAISE_QUOTAS, over
from espalier.gateway.world.world import NamespacedName

WAIT_SECONDS = 1.0
# The longest that OpenAI's client would wait is 120 s; later it gives up at once.
RETRY_MOST_SECONDS = 60
# Shares of callers that are gone are dropped when there are so many.
SHARES_MOST = 1024
Kind = Literal["sample", "train"]


@dataclass(frozen=True)
class Limits:
    """What a caller may take of a model, 0 for no limit; and of the room for bodies, in percent.

    Tinker's client has up to 2000 samples on their way, each on a connection of its own;
    ``connections`` are those of one address, whoever calls from there.
    """

    requests: int = 2048
    tokens_per_minute: int = 0
    body_percent: int = 50
    connections: int = 4096


@dataclass
class Share:
    """What one caller takes of one model. ``owed``: tokens that were not earned back at ``at``."""

    room: asyncio.Semaphore
    limit: int
    at: float
    open: int = 0
    owed: float = field(default=0.0)

    def spend(self, tokens: int) -> None:
        """Counts tokens of a prompt or an answer."""
        self.owed += tokens

    def earned_back(self, now: float) -> float:
        """The seconds until the next request is let in; 0 if it is at once."""
        each_second = self.limit / 60
        self.owed = max(0.0, self.owed - each_second * (now - self.at))
        self.at = now
        return max(0.0, (self.owed - self.limit) / each_second) if self.limit else 0.0


class Quotas:
    """Lets requests in within the limits. ``clock``: seconds."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._shares: dict[tuple[str, NamespacedName, Kind], Share] = {}

    @asynccontextmanager
    async def sample(self, user: User, model: NamespacedName) -> AsyncIterator[Share]:
        """Lets a sample in until it ends; RefusalError 429 without room or tokens."""
        share = self._share(user, model, "sample")
        await self._check_tokens(share, user, model)
        async with self._room(share, user, model, WAIT_SECONDS):
            yield share

    @asynccontextmanager
    async def train(
        self, user: User, model: NamespacedName, seconds: float = 0.0
    ) -> AsyncIterator[None]:
        """Lets a command in until it ends; RefusalError 429 if no room comes in so long.

        Commands have room of their own: no number of samples keeps their caller from training.
        """
        share = self._share(user, model, "train")
        async with self._room(share, user, model, max(seconds, WAIT_SECONDS)):
            yield

    @asynccontextmanager
    async def _room(
        self, share: Share, user: User, model: NamespacedName, seconds: float
    ) -> AsyncIterator[None]:
        # Before it waits: a share that is waited for is not dropped.
        share.open += 1
        try:
            await self._take(share, user, model, seconds)
            try:
                yield
            finally:
                share.room.release()
        finally:
            share.open -= 1

    async def _check_tokens(self, share: Share, user: User, model: NamespacedName) -> None:
        seconds = share.earned_back(self._clock())
        if not seconds:
            return
        await asyncio.sleep(min(WAIT_SECONDS, seconds))
        if seconds > WAIT_SECONDS:
            raise over(
                "TooManyTokens",
                f"{user.name} spent {share.limit} tokens a minute at {model}, the most it may",
                RAISE_QUOTAS,
                retry_after=min(math.ceil(seconds - WAIT_SECONDS), RETRY_MOST_SECONDS),
            )

    async def _take(self, share: Share, user: User, model: NamespacedName, seconds: float) -> None:
        try:
            # At random moments: those that came together would come again together.
            async with asyncio.timeout(seconds * random.uniform(0.5, 1.5)):
                await share.room.acquire()
        except TimeoutError:
            raise over(
                "TooManyRequests",
                f"{user.name} has {self._limits.requests} requests at {model}, the most it may "
                "have at once",
                RAISE_QUOTAS,
            ) from None

    def _share(self, user: User, model: NamespacedName, kind: Kind) -> Share:
        key, now = (user.name, model, kind), self._clock()
        if key not in self._shares:
            if len(self._shares) >= SHARES_MOST:
                self._drop_idle(now)
            room = asyncio.Semaphore(self._limits.requests or 2**31)
            self._shares[key] = Share(room, self._limits.tokens_per_minute, now)
        return self._shares[key]

    def _drop_idle(self, now: float) -> None:
        for key, share in [*self._shares.items()]:
            share.earned_back(now)
            if not share.open and not (share.limit and share.owed):
                del self._shares[key]
