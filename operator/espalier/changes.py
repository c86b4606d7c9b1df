"""Waiting for the next change of something that many tasks of one event loop look at."""

from __future__ import annotations

import asyncio


class Changes:
    """Announces changes to whoever waits; one that comes later waits for the next change."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def announce(self) -> None:
        """Wakes all who wait now."""
        # Each change has its own event, so that none wakes a task that begins to wait after it.
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self) -> None:
        """Returns at the next change."""
        await self._next.wait()
