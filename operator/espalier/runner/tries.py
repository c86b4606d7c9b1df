"""For how long a rollout is waited for, how often it is tried, and with which seeds it samples."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

from espalier.api.run.timeouts import Timeouts
from espalier.api.trainingrun import TrainingRunSpec
from espalier.environments.errors import RolloutFailedError
from espalier.environments.tasks import request_seed
from espalier.runner.within import within

T = TypeVar("T")


@dataclass(frozen=True)
class Tries:
    """What a run says of one rollout: tries after the first, and seconds of a request.

    ``group_seconds`` are of all rollouts of a task together. ``least`` rollouts of a group are
    enough to train on; None: all.
    """

    retries: int = 0
    sample_seconds: float | None = None
    group_seconds: float | None = None
    least: int | None = None

    @classmethod
    def of(cls, spec: TrainingRunSpec) -> Tries:
        """Of a run."""
        times, errors = spec.timeouts or Timeouts(), spec.rollout_errors
        if errors is None:
            return cls(0, times.sample_seconds, times.group_seconds)
        least = errors.min_group_size
        return cls(errors.max_retries, times.sample_seconds, times.group_seconds, least)

    async def sampled(self, request: Awaitable[T]) -> T:
        """The answer to one request for completions; RolloutFailedError once its time is over."""
        limit = f"a request for completions took longer than {self.sample_seconds} s"
        return await _in_time(self.sample_seconds, request, f"{limit} (timeouts.sampleSeconds)")

    def group(self) -> GroupTime:
        """The time of one task's rollouts, which begins with the first of them."""
        return GroupTime(self.group_seconds)


@dataclass
class GroupTime:
    """What the rollouts of one task have left."""

    seconds: float | None
    _until: float | None = field(default=None, init=False)

    async def within(self, work: Awaitable[T]) -> T:
        """The result of a rollout, or of its rewards; RolloutFailedError once the time is over."""
        now = asyncio.get_running_loop().time()
        if self.seconds is not None and self._until is None:
            self._until = now + self.seconds
        left = self._until - now if self._until is not None else None
        limit = f"its group took longer than {self.seconds} s (timeouts.groupSeconds)"
        return await _in_time(left, work, limit)

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return self._until is not None and asyncio.get_running_loop().time() >= self._until


async def _in_time(seconds: float | None, work: Awaitable[T], limit: str) -> T:
    return await within(seconds, work, lambda: RolloutFailedError("Timeout", limit))


@dataclass(frozen=True)
class Seeds:
    """The seeds of a run's requests for one task; none where the run has no seed.

    ``where`` names the task's place: its number in the run, or the evaluation and its task.
    """

    seed: int | None
    where: tuple[int | str, ...]

    def of(self, *part: int) -> int | None:
        """Of one request: rollout, try and turn. Of several completions the server counts up."""
        return None if self.seed is None else request_seed(self.seed, *self.where, *part)

    def fields(self, *part: int) -> dict[str, int]:
        """The same as fields of the request."""
        found = self.of(*part)
        return {} if found is None else {"seed": found}
