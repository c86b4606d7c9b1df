"""Where the wall-clock time of a step goes."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from espalier.client.completion import Completion
from espalier.client.gateway import Message
from espalier.loop.session import Sampler

Phase = Literal["commit", "training", "waiting", "sampling"]


class StepClock:
    """Adds up what the loop waits for, from one step's command to the next one's.

    The parts add up to the whole: where sampling goes on while the loop waits for gradients, as an
    asynchronous schedule has it, the time is training's.

    Args:
        now: seconds of a clock that never goes back.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._since = now()
        self._open: Counter[Phase] = Counter()
        self._spent: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """What goes on within; ``sampling`` may be many at once, and counts while ``waiting``."""
        self._account()
        self._open[name] += 1
        try:
            yield
        finally:
            self._account()
            self._open[name] -= 1

    def swapped(self, seconds: float) -> None:
        """So much of the commit was the wait until the head served the new weights."""
        moved = min(seconds, self._spent["commit"])
        self._spent["commit"] -= moved
        self._spent["swap"] += moved

    def lap(self) -> dict[str, float]:
        """The metrics of the time since the last lap, in seconds."""
        self._account()
        spent, self._spent = self._spent, defaultdict(float)
        return {
            "time/sampling_seconds": spent["sampling"],
            "time/reward_seconds": spent["reward"],
            "time/training_seconds": spent["training"],
            "time/commit_seconds": spent["commit"],
            "time/swap_seconds": spent["swap"],
            "time/idle_seconds": spent["idle"],
            "time/step_seconds": sum(spent.values()),
        }

    def _account(self) -> None:
        now = self._now()
        self._spent[self._doing()] += now - self._since
        self._since = now

    def _doing(self) -> str:
        if self._open["commit"]:
            return "commit"
        if self._open["training"]:
            return "training"
        if self._open["waiting"]:
            return "sampling" if self._open["sampling"] else "reward"
        return "idle"


class TimedSampler:
    """A sampler whose requests are a phase of a clock."""

    def __init__(self, sampler: Sampler, clock: StepClock) -> None:
        self._sampler = sampler
        self._clock = clock

    async def sample(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        checkpoint: str = "",
        count: int = 1,
        temperature: float = 1.0,
        extra: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """As the sampler does it."""
        with self._clock.phase("sampling"):
            return await self._sampler.sample(
                messages,
                max_tokens=max_tokens,
                checkpoint=checkpoint,
                count=count,
                temperature=temperature,
                extra=extra,
            )
