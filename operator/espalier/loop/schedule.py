"""When groups are sampled, and when a step may be taken with them.

A schedule hands out the groups of a step in parts: gradients of a part are added as soon as it is
there. Groups are numbered over the whole run: the step that follows ``run_step`` takes the numbers
from ``run_step * count`` on, so that a process that starts again asks what the killed one asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from espalier.client.errors import ConfigurationError
from espalier.loop.minibatches import ONCE, Uses

G = TypeVar("G")

# Plays the groups of these numbers with a checkpoint (its name; empty for the base).
Play = Callable[[Sequence[int], str], Awaitable[Sequence[G]]]


@dataclass(frozen=True)
class Place:
    """Where a step is taken from, and which groups it takes.

    Attributes:
        term: of the head; groups of an earlier term are never trained on.
        run_step: steps that the run has taken.
        checkpoint: the name of the checkpoint that the trainer stands on; empty for the base.
        count: groups that are sampled at once: of a batch.
        round: how many times groups were sampled for this step before.
        take: groups of this round, at most ``count``; fewer are, where the run ends before it
            could train them.
        recipe: equal for groups that may be trained on together.
        uses: how many optimizer steps the batch is for.
        left: steps until the run's last; None: no end is known.
    """

    term: int
    run_step: int
    checkpoint: str
    count: int
    round: int
    take: int
    recipe: object = None
    uses: Uses = ONCE
    left: int | None = None

    @property
    def minibatches(self) -> int:
        """Of the batch: those that the steps that are left can train."""
        most = self.uses.minibatches
        return most if self.left is None else min(most, self.left)

    @property
    def wanted(self) -> int:
        """Groups of the batch that can be trained."""
        return self.count // self.uses.minibatches * self.minibatches

    @property
    def numbers(self) -> range:
        """Of the groups of this round."""
        trained = self.run_step // self.uses.epochs * (self.count // self.uses.minibatches)
        first = trained + self.round * self.count
        return range(first, first + min(self.take, self.wanted))

    def ahead(self, batches: int) -> range:
        """Of the groups of so many batches, this one included, as far as steps are left."""
        most = batches * self.count
        if self.left is not None:
            whole, rest = divmod(self.left, self.uses.steps)
            minibatches = whole * self.uses.minibatches + min(rest, self.uses.minibatches)
            most = min(most, self.count // self.uses.minibatches * minibatches)
        return range(self.numbers.start, self.numbers.start + most)


@dataclass(frozen=True)
class Part(Generic[G]):
    """Some groups of a step; ``staleness`` in steps: how much older than the trainer they are."""

    groups: Sequence[G]
    staleness: tuple[int, ...] = ()


class Schedule(Protocol[G]):
    """How sampling and training take turns."""

    def check(self, uses: Uses) -> None:
        """ConfigurationError where it cannot take so many steps with a batch."""
        ...

    def parts(self, place: Place, play: Play[G]) -> AsyncIterator[Part[G]]:
        """The groups of one round of a step."""
        ...

    async def close(self) -> None:
        """Ends what is still being sampled."""
        ...


class Synchronous(Generic[G]):
    """Samples all groups of a step, then trains: every group is of the trainer's own weights."""

    def check(self, uses: Uses) -> None:
        """Takes any number."""

    async def parts(self, place: Place, play: Play[G]) -> AsyncIterator[Part[G]]:
        """All groups at once."""
        yield Part(await play(place.numbers, place.checkpoint))

    async def close(self) -> None:
        """Nothing is left between steps."""


class Streaming(Generic[G]):
    """Adds gradients of each minibatch as it comes, while the rest of the step is sampled.

    Every group is still of the trainer's own weights: the optimizer steps once, after the last.

    Args:
        minibatches: parts of a step.
    """

    def __init__(self, minibatches: int) -> None:
        if minibatches < 2:
            raise ConfigurationError(f"minibatches is {minibatches}: give at least 2")
        self._minibatches = minibatches

    def check(self, uses: Uses) -> None:
        """Takes one."""
        if uses.steps > 1:
            raise ConfigurationError(
                f"a batch of {uses.steps} steps needs all of its groups, and Streaming adds "
                "gradients before they are there: take one step with a batch, or choose another "
                "schedule"
            )

    async def parts(self, place: Place, play: Play[G]) -> AsyncIterator[Part[G]]:
        """The minibatches, each when its last group is done."""
        size, rest = divmod(place.take, self._minibatches)
        if rest:
            raise ConfigurationError(
                f"{place.take} groups of a step do not divide into {self._minibatches} "
                "minibatches: choose numbers that do"
            )
        chunks = [place.numbers[start : start + size] for start in range(0, place.take, size)]
        running = [asyncio.ensure_future(play(chunk, place.checkpoint)) for chunk in chunks]
        try:
            for done in asyncio.as_completed(running):
                yield Part(await done)
        finally:
            await _end(running)

    async def close(self) -> None:
        """Nothing is left between steps."""


@dataclass(frozen=True)
class _InFlight(Generic[G]):
    running: asyncio.Task[Sequence[G]]
    run_step: int


class Asynchronous(Generic[G]):
    """Samples the groups of later steps while a step is trained.

    At most ``count * (staleness + 1)`` groups are in flight, and none beyond the run's last step. A
    step takes the oldest, and waits for them; none is thrown away, so that long rollouts are not at
    a disadvantage. A group is of weights at most ``staleness`` steps older than those that learn
    from it, the last step of its batch included; with 0 this is ``Synchronous``, to the bit.

    Args:
        staleness: steps.
    """

    def __init__(self, staleness: int) -> None:
        if staleness < 0:
            raise ConfigurationError(f"staleness is {staleness}: give 0 or more steps")
        self._staleness = staleness
        self._key: object = None
        self._flying: dict[int, _InFlight[G]] = {}

    def check(self, uses: Uses) -> None:
        """Takes as many as the bound leaves room for."""
        if uses.steps - 1 > self._staleness:
            raise ConfigurationError(
                f"the last of {uses.steps} steps of a batch is {uses.steps - 1} steps from the "
                f"weights that were sampled, and staleness is {self._staleness}: raise it, or take "
                "fewer steps with a batch"
            )

    async def parts(self, place: Place, play: Play[G]) -> AsyncIterator[Part[G]]:
        """The oldest groups, once all of them are done."""
        await self._drop_unusable(place)
        for number in place.ahead((self._staleness + 1) // place.uses.steps):
            if number not in self._flying:
                running = asyncio.ensure_future(_played(play, number, place.checkpoint))
                self._flying[number] = _InFlight(running, place.run_step)
        await asyncio.wait([self._flying[number].running for number in place.numbers])
        taken = self._landed(place.numbers)
        groups = [group for one in taken for group in one.running.result()]
        yield Part(groups, tuple(place.run_step - one.run_step for one in taken))

    async def close(self) -> None:
        """Cancels what is in flight."""
        flying, self._flying = self._flying, {}
        await _end([one.running for one in flying.values()])

    def _landed(self, numbers: range) -> list[_InFlight[G]]:
        """Takes finished groups out; where one failed, raises its error and keeps the others."""
        for number in numbers:
            if error := self._flying[number].running.exception():
                del self._flying[number]
                raise error
        return [self._flying.pop(number) for number in numbers]

    async def _drop_unusable(self, place: Place) -> None:
        """Drops groups of another term, of an edited recipe, and of steps that are over."""
        key = (place.term, place.count, place.recipe, place.uses)
        if key != self._key:
            await self.close()
            self._key = key
        oldest = place.run_step - self._staleness + place.uses.steps - 1
        late = [
            number
            for number, one in self._flying.items()
            if number < place.numbers.start or not oldest <= one.run_step <= place.run_step
        ]
        await _end([self._flying.pop(number).running for number in late])


async def _played(play: Play[G], number: int, checkpoint: str) -> Sequence[G]:
    return await play([number], checkpoint)


async def _end(running: Sequence[asyncio.Future[Sequence[G]]]) -> None:
    for one in running:
        one.cancel()
    await asyncio.gather(*running, return_exceptions=True)
