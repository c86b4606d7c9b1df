"""Waits with a name and a bound."""

from __future__ import annotations

import asyncio
import time

from espalier.runner.journal import Journal
from espalier.runner.prometheus import WAITS
from espalier.runner.run_end import WaitError


class Waiting:
    """Waits a poll at a time for one named reason, and bounds how long the same reason holds."""

    def __init__(self, journal: Journal, poll_seconds: float = 2.0) -> None:
        self._journal = journal
        self._poll = poll_seconds
        self._reason = ""
        self._since = 0.0

    async def on(self, reason: str, detail: str, limit: float) -> None:
        """Sleeps for one poll.

        Raises:
            WaitError: the reason has held for ``limit`` seconds.
        """
        WAITS.labels(reason).inc()
        now = time.monotonic()
        if reason != self._reason:
            self._reason, self._since = reason, now
            self._journal.event("waiting", reason=reason, detail=detail)
        if now - self._since > limit:
            raise WaitError(reason, limit, detail)
        await asyncio.sleep(self._poll)

    def over(self) -> None:
        """The loop goes on: the next wait begins anew."""
        self._reason = ""
