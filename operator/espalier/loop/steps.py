"""Takes one optimizer step after another, for scripts and for declared runs alike.

It keeps nothing that it needs: where it stands is read from the trainer before every step. So it
goes on rightly after it or the trainer was killed, and after a rollback moved the trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Generic, Protocol, TypeVar

from espalier.api.wire.batch_left import BatchLeft
from espalier.api.wire.gradients import (
    ForwardBackwardRequest,
    ForwardBackwardResult,
    ForwardRequest,
    ForwardResult,
)
from espalier.api.wire.step import OptimStepRequest
from espalier.api.wire.trainer import TrainerState
from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.client.answers import CommittedStep
from espalier.client.errors import NoGradientsError
from espalier.loop import minibatches
from espalier.loop.minibatches import Uses
from espalier.loop.schedule import Part, Place, Schedule
from espalier.loop.step_clock import StepClock

G = TypeVar("G")


class Trainer(Protocol):
    """Whom the loop commands: a GatewayClient, or a script's TrainingClient behind an adapter."""

    async def zero_grad(self, *, term: int = 0) -> object:
        """Drops gradients."""
        ...

    async def batch(self) -> BatchLeft | None:
        """What is left of the batch that the latest step came from."""
        ...

    async def forward(self, request: ForwardRequest, *, term: int = 0) -> ForwardResult:
        """The trainer's log-probs."""
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

    @property
    def uses(self) -> Uses:
        """How many optimizer steps a batch is for."""
        ...

    def place(self, state: TrainerState, attempt: Attempt[G]) -> Place:
        """Which groups the next round takes, and from where."""
        ...

    async def play(self, numbers: Sequence[int], checkpoint: str) -> Sequence[G]:
        """Samples and grades groups."""
        ...

    def chosen(self, groups: Sequence[G], rounds: int) -> Sequence[G]:
        """The groups that are trained on; none where too few teach, or more are to be sampled."""
        ...

    def inputs(self, chosen: Sequence[G]) -> Sequence[Sequence[TrajectoryPayload]]:
        """Their trajectories, with group ids."""
        ...

    def gradients(self, inputs: Sequence[TrajectoryPayload]) -> ForwardBackwardRequest:
        """The command that adds the gradients of whole groups."""
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
        # What is left of a batch, at the position where that is known.
        self._left: tuple[tuple[str, int, int], BatchLeft | None] | None = None
        # What a round does now; for people.
        self.doing = "sampling"

    async def close(self) -> None:
        """Ends what is still being sampled."""
        await self._schedule.close()

    async def round(self, state: TrainerState, recipe: Recipe[G]) -> Taken[G] | None:
        """One step with what is left of a batch; else a round of sampling, and a step if any group
        was chosen; None if none was.

        Raises:
            ConfigurationError: the schedule cannot take so many steps with a batch.
        """
        self._schedule.check(recipe.uses)
        position = (state.term, state.run_step, state.digest)
        if self.attempt.position != position or self.attempt.trained:
            # Gradients of a step that was refused are dropped with the groups that they came from.
            self.attempt = Attempt(position)
        if state.pending:
            # Of a process that was killed, or of a step that was refused.
            await self._trainer.zero_grad(term=state.term)
        left = await self._unfinished(state)
        if left is not None:
            # Without a gradient in what is left, as where a loss clips it all, the batch is over.
            with suppress(NoGradientsError):
                return await self._take(state, recipe, left)
        return await self._sampled(state, recipe)

    async def _sampled(self, state: TrainerState, recipe: Recipe[G]) -> Taken[G] | None:
        attempt, once = self.attempt, recipe.uses.steps == 1
        waiting = list(attempt.groups)
        place = recipe.place(state, attempt)
        attempt.rounds += 1
        self.doing = "sampling"
        with self._clock.phase("waiting"):
            async for part in self._schedule.parts(place, recipe.play):
                waiting += part.groups
                if once:
                    waiting = await self._learn(state.term, recipe, waiting)
                _record(attempt, part)
                self.doing = "sampling"
        if not once:
            return await self._begun(state, recipe, waiting)
        if not attempt.trained:
            return None
        return await self._commit(state, self._request(state, recipe))

    async def _learn(self, term: int, recipe: Recipe[G], waiting: list[G]) -> list[G]:
        """Adds the gradients of what can be learnt from; the groups that still wait."""
        chosen = recipe.chosen(waiting, self.attempt.rounds)
        if not chosen:
            return waiting
        inputs = [payload for group in recipe.inputs(chosen) for payload in group]
        await self._add(term, recipe.gradients(inputs))
        self.attempt.trained += chosen
        return []

    async def _begun(
        self, state: TrainerState, recipe: Recipe[G], waiting: list[G]
    ) -> Taken[G] | None:
        """The first step of a batch that has several."""
        chosen = recipe.chosen(waiting, self.attempt.rounds)
        if not chosen:
            return None
        left = minibatches.cut(recipe.inputs(chosen), recipe.uses, state.run_step)
        numbers = minibatches.seen_again(left)
        inputs = [payload for number in numbers for payload in left.parts[number]]
        if inputs and recipe.gradients(inputs).ratio_anchor == "Trainer":
            # Before the first step moves the policy away from where it first saw them.
            with self._clock.phase("training"):
                first = await self._trainer.forward(
                    ForwardRequest(inputs=list(inputs)), term=state.term
                )
            left = minibatches.anchored(left, numbers, first.data)
        self.attempt.trained += chosen
        return await self._take(state, recipe, left)

    async def _take(self, state: TrainerState, recipe: Recipe[G], left: BatchLeft) -> Taken[G]:
        """The next step of a batch that has a gradient; NoGradientsError if none has."""
        while True:
            await self._add(state.term, recipe.gradients(minibatches.part(left)))
            request = self._request(state, recipe)
            figures = minibatches.metrics(left, request.metrics)
            rest = minibatches.after(left, taken=True)
            if rest is not None and not left.taken:
                rest = rest.model_copy(update={"metrics": figures})
            changes: dict[str, Any] = {
                "metrics": figures,
                "batch": rest,
                "cursor": {**request.cursor, _LEFT: _steps_in(rest)},
            }
            if left.taken:
                # Its rollouts are beside the first step's checkpoint.
                changes |= {"rollouts": [], "keep_rollouts": False}
            try:
                taken = await self._commit(state, request.model_copy(update=changes))
            except NoGradientsError:
                # The same weights would give none again: this step of the batch is left out.
                await self._trainer.zero_grad(term=state.term)
                following = minibatches.after(left, taken=False)
                self._left = ((state.run, state.term, state.run_step), following)
                if following is None:
                    raise
                left = following
                continue
            self._left = ((state.run, state.term, state.run_step + 1), rest)
            return taken

    async def _unfinished(self, state: TrainerState) -> BatchLeft | None:
        """What is left of the latest step's batch; asked of the trainer by a loop that starts."""
        here = (state.run, state.term, state.run_step)
        if self._left is None or self._left[0] != here:
            left = await self._trainer.batch() if state.cursor.get(_LEFT) else None
            self._left = (here, left)
        return self._left[1]

    async def _add(self, term: int, request: ForwardBackwardRequest) -> None:
        self.doing = "adding gradients"
        with self._clock.phase("training"):
            found = await self._trainer.forward_backward(request, term=term)
        self.attempt.metrics |= found.metrics

    def _request(self, state: TrainerState, recipe: Recipe[G]) -> OptimStepRequest:
        before = self.attempt.seconds
        lap = self._clock.lap()
        self.attempt.seconds = {name: lap[name] + before.get(name, 0.0) for name in lap}
        return recipe.step(state, self.attempt)

    async def _commit(self, state: TrainerState, request: OptimStepRequest) -> Taken[G]:
        self.doing = "taking the optimizer step"
        with self._clock.phase("commit"):
            committed = await self._trainer.optim_step(request, term=state.term)
        self._clock.swapped(committed.promotion_seconds)
        return Taken(committed, request, self.attempt)


# In the cursor: how many steps the batch of the latest step still has.
_LEFT = "batch_left"


def _steps_in(left: BatchLeft | None) -> int:
    return 0 if left is None else len(left.parts) * left.epochs - left.next


def _record(attempt: Attempt[G], part: Part[G]) -> None:
    attempt.groups += part.groups
    attempt.staleness += part.staleness
