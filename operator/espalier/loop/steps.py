"""Takes one optimizer step after another, for scripts and for declared runs alike.

It keeps nothing that it needs: where it stands is read from the trainer before every step. So it
goes on rightly after it or the trainer was killed, and after a rollback moved the trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Generic, Protocol, TypeVar

from espalier.api.wire import (
    ForwardBackwardRequest,
    ForwardBackwardResult,
    OptimStepRequest,
    TrainerState,
)
from espalier.client.gateway import CommittedStep
from espalier.loop.schedule import Part, Place, Schedule
from espalier.loop.step_clock import StepClock

G = TypeVar("G")


class Trainer(Protocol):
    """Whom the loop commands: a GatewayClient, or a script's TrainingClient behind an adapter."""

    async def zero_grad(self, *, term: int = 0) -> object:
        """Drops gradients."""
        ...

    async def forward_backward(
        self, request: ForwardBackwardRequest, *, term: int = 0
    ) -> ForwardBackwardResult:
        """Adds gradients."""
        ...

    async def optim_step(self, request: OptimStepRequest, *, term: int = 0) -> CommittedStep:
        """Takes the step."""
        ...


@dataclass
class Attempt(Generic[G]):
    """What was sampled for the step that follows one position of the trainer.

    Attributes:
        position: term, step of the run, and digest of the trainer's checkpoint.
        rounds: of sampling.
        groups: everything sampled.
        trained: those of them that gradients came from.
        staleness: of the groups of an asynchronous schedule, in steps.
        metrics: of the gradients.
        seconds: metrics of the time since the last step was sent.
    """

    position: tuple[int, int, str]
    rounds: int = 0
    groups: list[G] = field(default_factory=list)
    trained: list[G] = field(default_factory=list)
    staleness: list[int] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def staleness_metrics(self) -> dict[str, float]:
        """Mean and maximum; none where the schedule has no staleness."""
        if not self.staleness:
            return {}
        return {
            "async/staleness_steps/mean": fmean(self.staleness),
            "async/staleness_steps/max": float(max(self.staleness)),
        }


class Recipe(Protocol[G]):
    """What a step is made of. A script and a declared run each have one."""

    def place(self, state: TrainerState, attempt: Attempt[G]) -> Place:
        """Which groups the next round takes, and from where."""
        ...

    async def play(self, numbers: Sequence[int], checkpoint: str) -> Sequence[G]:
        """Samples and grades groups."""
        ...

    def chosen(self, groups: Sequence[G], rounds: int) -> Sequence[G]:
        """The groups that are trained on; none where too few teach, or more are to be sampled."""
        ...

    def gradients(self, chosen: Sequence[G]) -> ForwardBackwardRequest:
        """The command that adds their gradients."""
        ...

    def step(self, state: TrainerState, attempt: Attempt[G]) -> OptimStepRequest:
        """The command that takes the step."""
        ...


@dataclass(frozen=True)
class Taken(Generic[G]):
    """A committed step."""

    committed: CommittedStep
    request: OptimStepRequest
    attempt: Attempt[G]


class Steps(Generic[G]):
    """Takes steps with a schedule.

    Args:
        trainer: of the model.
        schedule: how sampling and training take turns.
        clock: of the recipe as well, whose sampler tells it of requests.
    """

    def __init__(self, trainer: Trainer, schedule: Schedule[G], clock: StepClock) -> None:
        self._trainer = trainer
        self._schedule = schedule
        self._clock = clock
        self.attempt: Attempt[G] = Attempt((0, 0, ""))

    async def close(self) -> None:
        """Ends what is still being sampled."""
        await self._schedule.close()

    async def round(self, state: TrainerState, recipe: Recipe[G]) -> Taken[G] | None:
        """One round of sampling, and the step if any group was chosen; None if none was."""
        position = (state.term, state.run_step, state.digest)
        if self.attempt.position != position or self.attempt.trained:
            # Gradients of a step that was refused are dropped with the groups that they came from.
            self.attempt = Attempt(position)
        attempt = self.attempt
        if state.pending:
            # Of a process that was killed, or of a step that was refused.
            await self._trainer.zero_grad(term=state.term)
        waiting = list(attempt.groups)
        place = recipe.place(state, attempt)
        attempt.rounds += 1
        with self._clock.phase("waiting"):
            async for part in self._schedule.parts(place, recipe.play):
                waiting = await self._learn(state.term, recipe, [*waiting, *part.groups])
                _record(attempt, part)
        if not attempt.trained:
            return None
        attempt.seconds = self._clock.lap()
        request = recipe.step(state, attempt)
        with self._clock.phase("commit"):
            committed = await self._trainer.optim_step(request, term=state.term)
        self._clock.swapped(committed.promotion_seconds)
        return Taken(committed, request, attempt)

    async def _learn(self, term: int, recipe: Recipe[G], waiting: list[G]) -> list[G]:
        """Adds the gradients of what can be learnt from; the groups that still wait."""
        chosen = recipe.chosen(waiting, self.attempt.rounds)
        if not chosen:
            return waiting
        with self._clock.phase("training"):
            found = await self._trainer.forward_backward(recipe.gradients(chosen), term=term)
        self.attempt.trained += chosen
        self.attempt.metrics |= found.metrics
        return []


def _record(attempt: Attempt[G], part: Part[G]) -> None:
    attempt.groups += part.groups
    attempt.staleness += part.staleness
