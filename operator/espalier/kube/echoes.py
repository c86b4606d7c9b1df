"""Leaves out of a watch what the cache holds already: above all the echoes of our own writes.

Every write comes back as an event, and kopf takes a millisecond or so for each. The cache would
ignore it in the end, for it holds that version since the write was answered.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from pydantic_core import from_json

from espalier.kube import queue_metrics
from espalier.kube.cache import Cache
from espalier.kube.objects import Body, key_of

ECHO = "ECHO"
# What is deleted, and what is no object, is always news.
_VERSIONED = ("ADDED", "MODIFIED")


class Content(Protocol):
    """The part of aiohttp.StreamReader that a watch reads."""

    def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        """The content in pieces of at most so many bytes."""


class News:
    """The content of a watch of one kind, without the lines that say nothing new."""

    def __init__(self, content: Content, kind: str, cache: Cache) -> None:
        self._content = content
        self._kind = kind
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        """All else is as it was: how a response is closed, and what is wrong with it."""
        return getattr(self._content, name)

    async def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        """Whole lines, whatever their length; see Content."""
        rest = b""
        async for data in self._content.iter_chunked(n):
            *lines, rest = (rest + data).split(b"\n")
            if news := [line + b"\n" for line in lines if not self._is_echo(line)]:
                yield b"".join(news)
        if rest:
            yield rest

    def _is_echo(self, line: bytes) -> bool:
        try:
            event: Body = from_json(line)
            if event["type"] not in _VERSIONED:
                return False
            body = event["object"]
            version = int(body["metadata"]["resourceVersion"])
            held = self._cache.version(key_of(self._kind, body))
        except (ValueError, KeyError, TypeError):
            # Whoever reads the stream says what is wrong with it.
            return False
        if held < version:
            return False
        queue_metrics.WATCH_EVENTS.labels(kind=self._kind, type=ECHO).inc()
        return True
