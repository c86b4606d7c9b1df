"""Callers take turns in vLLM's queue, however much one of them has waiting.

vLLM starts what has the lowest number first (``--scheduling-policy priority``), and of equal ones
the earlier. This is start-time fair queueing: a request's number is where its caller's last one
ends, or the highest end that was served where that is more, and it ends one later for each of its
answers. So a newcomer comes before what waits of a flood, and a caller's own requests are served as
they come. Nothing waits for ever: whatever comes is numbered beyond what was served, and so, in
time, beyond any number that waits.

The number of requests that a caller has in flight would not do: of two callers with 63 and 64 the
second would hardly be served while the first sends on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

# Whose request this is; set for each of them before vLLM sees it.
CALLER: ContextVar[str] = ContextVar("caller", default="")
# By which the engine is told: one of a request's arguments that are for plugins of vLLM.
CALLER_ARGUMENT = "espalier_caller"


@dataclass(frozen=True)
class Turn:
    """The place of a request in the queue: the number that vLLM is given, and where it ends."""

    number: int
    end: int


@dataclass
class _Line:
    """Of one caller: where what was served ends, and the ends of what is open, as they came."""

    served: int = 0
    open: dict[int, None] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return max(self.served, next(reversed(self.open), 0))


class Turns:
    """Gives turns. Counts answers alone, because their lengths are known once they ended."""

    def __init__(self) -> None:
        self._served = 0
        self._lines: dict[str, _Line] = {}

    @contextmanager
    def taken(self, caller: str, answers: int) -> Iterator[Turn]:
        """The turn of a request for so many answers, until it ends."""
        line = self._lines.setdefault(caller, _Line())
        number = max(line.last, self._served)
        turn = Turn(number, number + answers)
        line.open[turn.end] = None
        try:
            yield turn
        finally:
            del line.open[turn.end]
            self._leave(line, turn)

    def served(self, turn: Turn) -> None:
        """Notes what vLLM says first of a request: of one that is not streamed, that it ended.

        What is given up while it waits does not count: a flood whose last requests are withdrawn
        would send newcomers behind it.
        """
        self._served = max(self._served, turn.end)

    def _leave(self, line: _Line, turn: Turn) -> None:
        """Charges a caller for what was served, and for what it gave up when its turn had come."""
        if turn.number < self._served:
            line.served = max(line.served, turn.end)
        kept = {c: one for c, one in self._lines.items() if one.open or one.served > self._served}
        self._lines = kept


def install(engine: Any) -> None:
    """Has every sample of ``engine``, vLLM's client of its engine, take and tell its caller's turn.

    There, because a request of several prompts, or a search of several beams, is many samples.
    """
    turns, generate = Turns(), engine.generate

    async def in_turn(
        prompt: Any, sampling_params: Any, request_id: str, **given: Any
    ) -> AsyncIterator[Any]:
        caller = CALLER.get()
        told = {**(sampling_params.extra_args or {}), CALLER_ARGUMENT: caller}
        sampling_params.extra_args = told
        with turns.taken(caller, sampling_params.n) as turn:
            given["priority"] = turn.number
            # vLLM ends a sample when its generator is closed, so it is closed with this one.
            async with aclosing(generate(prompt, sampling_params, request_id, **given)) as outputs:
                async for output in outputs:
                    turns.served(turn)
                    yield output

    engine.generate = in_turn
