"""Callers take turns in vLLM's queue, however much one of them has waiting.

vLLM starts what has the lowest number first (``--scheduling-policy priority``), and of equal ones
the earlier. A request's number is its caller's last one, or the highest that was answered where
that is more, and one for each of its answers. So a newcomer comes before what waits of a flood, and
a caller's own requests are served as they come. Nothing waits for ever: whatever comes is numbered
beyond what was answered, and so, in time, beyond any number that waits.

The number of requests that a caller has in flight would not do: of two callers with 63 and 64 the
second would hardly be served while the first sends on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

# Whose request this is; set for each of them before vLLM sees it.
CALLER: ContextVar[str] = ContextVar("caller", default="")


@dataclass
class _Line:
    """What one caller has in flight: its last number, and how many requests."""

    last: int = 0
    requests: int = 0


class Turns:
    """Numbers requests. Counts answers alone, because their lengths are known once they ended."""

    def __init__(self) -> None:
        self._answered = 0
        self._lines: dict[str, _Line] = {}

    @contextmanager
    def number(self, caller: str, answers: int) -> Iterator[int]:
        """The number of a request for so many answers, until it ends."""
        line = self._lines.setdefault(caller, _Line())
        line.last = max(line.last, self._answered) + answers
        line.requests += 1
        try:
            yield line.last
        finally:
            line.requests -= 1
            if not line.requests:
                del self._lines[caller]

    def answered(self, number: int) -> None:
        """Notes that vLLM has begun with it.

        What is given up while it waits does not count: a flood whose last requests are withdrawn
        would send newcomers behind it.
        """
        self._answered = max(self._answered, number)


def install(engine: Any) -> None:
    """Has every sample of ``engine``, vLLM's client of its engine, take its caller's turn.

    There, because a request of several prompts, or a search of several beams, is many samples.
    """
    turns, generate = Turns(), engine.generate

    async def in_turn(
        prompt: Any, sampling_params: Any, request_id: str, **given: Any
    ) -> AsyncIterator[Any]:
        with turns.number(CALLER.get(), sampling_params.n) as number:
            given["priority"] = number
            # vLLM ends a sample when its generator is closed, so it is closed with this one.
            async with aclosing(generate(prompt, sampling_params, request_id, **given)) as outputs:
                async for output in outputs:
                    turns.answered(number)
                    yield output

    engine.generate = in_turn
