"""Writes that another writer may be faster than."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from espalier.kube.cluster import ClusterError

ATTEMPTS = 5

T = TypeVar("T")


async def despite_contention(write: Callable[[], Awaitable[T]]) -> T:
    """Reads and writes again while the API server answers 409; the last 409 is raised.

    Args:
        write: reads the object anew and writes it.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return await write()
        except ClusterError as error:
            if error.status != 409:
                raise
    return await write()
