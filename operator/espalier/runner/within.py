"""Work that may take so long and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def within(seconds: float | None, work: Awaitable[T], late: Callable[[], Exception]) -> T:
    """The result; what ``late`` makes once the time is over. A timeout of the work itself passes.

    Args:
        seconds: None: no bound.
        work: is cancelled once the time is over.
        late: the error, made when it is needed.
    """
    try:
        async with asyncio.timeout(seconds) as time:
            return await work
    except TimeoutError as error:
        if not time.expired():
            raise
        raise late() from error
