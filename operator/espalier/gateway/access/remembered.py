"""Answers that are remembered for a short time, so that a request seldom waits for one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from typing import Generic, TypeVar

from cachetools import TTLCache

GRANTED_SECONDS = 60.0
REFUSED_SECONDS = 5.0
CAPACITY = 4096

V = TypeVar("V")


class Remembered(Generic[V]):
    """Answers by key for a while: a falsy one for 5 s, any other for 60 s, if not said otherwise.

    Callers who ask for the same key at the same time share one question. Falsy answers have room of
    their own: a flood of refusals makes nothing else be forgotten.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        granted: float = GRANTED_SECONDS,
        refused: float = REFUSED_SECONDS,
    ) -> None:
        self._granted: TTLCache[Hashable, V] = TTLCache(CAPACITY, granted, clock)
        self._refused: TTLCache[Hashable, V] = TTLCache(CAPACITY, refused, clock)
        self._questions: dict[Hashable, asyncio.Future[V]] = {}

    async def get(self, key: Hashable, ask: Callable[[], Awaitable[V]]) -> V:
        """The remembered answer, or a new one."""
        for answers in (self._granted, self._refused):
            with suppress(KeyError):
                return answers[key]
        question = self._questions.get(key)
        if question is None:
            question = asyncio.ensure_future(ask())
            self._questions[key] = question
            question.add_done_callback(lambda done: self._close(key, done))
        # Shielded, because others may wait for it when this caller disconnects.
        return await asyncio.shield(question)

    def _close(self, key: Hashable, question: asyncio.Future[V]) -> None:
        del self._questions[key]
        # The exception is read here too, because every caller may have gone.
        if not question.cancelled() and question.exception() is None:
            answer = question.result()
            (self._granted if answer else self._refused)[key] = answer
