"""Runs what belongs together: all of it, or nothing more once one part fails."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def together(parts: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in the order of the parts; when one raises, the others are cancelled."""
    running = [asyncio.ensure_future(part) for part in parts]
    try:
        return await asyncio.gather(*running)
    finally:
        for other in running:
            other.cancel()
