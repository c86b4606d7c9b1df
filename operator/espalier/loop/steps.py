"""Takes one optimizer step after another, for scripts and for declared runs alike.

It keeps nothing that it needs: where it stands is read from the trainer before every step. So it
goes on rightly after it or the trainer was killed, and after a rollback moved the trainer.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from espalier.api.wire.batch_left import BatchLeft
from espalier.api.wire.gradients import ForwardBackwardRequest, ForwardRequest
from espalier.api.wire.step import OptimStepRequest
from espalier.api.wire.trainer import TrainerState
from espalier.client.answers import CommittedStep
from espalier.client.errors import NoGradientsError
from espalier.loop import minibatches
from espalier.loop.custom_loss import CustomGradients
from espalier.loop.recipe import Attempt, Recipe, Trainer
from espalier.loop.schedule import Part, Place, Schedule
from espalier.loop.step_clock import StepClock

G = TypeVar("G")


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
                    waiting = await self._learn(place, recipe, waiting)
                _record(attempt, part)
                self.doing = "sampling"
        if not once:
            return await self._begun(state, place, recipe, waiting)
        if not attempt.trained:
            return None
        return await self._commit(state, self._request(state, recipe))

    async def _learn(self, place: Place, recipe: Recipe[G], waiting: list[G]) -> list[G]:
        """Adds the gradients of what can be learnt from; the groups that still wait."""
        chosen = recipe.chosen(waiting, place)
        if not chosen:
            return waiting
        inputs = [payload for group in recipe.inputs(chosen) for payload in group]
        await self._add(place.term, recipe.gradients(inputs))
        self.attempt.trained += chosen
        return []

    async def _begun(
        self, state: TrainerState, place: Place, recipe: Recipe[G], waiting: list[G]
    ) -> Taken[G] | None:
        """The first step of a batch that has several."""
        chosen = recipe.chosen(waiting, place)
        if not chosen:
            return None
        groups = recipe.inputs(chosen)
        left = minibatches.cut(groups, recipe.uses, state.run_step, place.minibatches)
        numbers = minibatches.seen_again(left)
        inputs = [payload for number in numbers for payload in left.parts[number]]
        if inputs and _anchored(recipe.gradients(inputs)):
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

    async def _add(self, term: int, wanted: ForwardBackwardRequest | CustomGradients) -> None:
        self.doing = "adding gradients"
        with self._clock.phase("training"):
            if isinstance(wanted, CustomGradients):
                # A trainer that was lost in between has forgotten what it has seen, and says so.
                seen = await self._trainer.forward(wanted.forward, term=term)
                found = await self._trainer.backward(await wanted.backward(seen), term=term)
            else:
                found = await self._trainer.forward_backward(wanted, term=term)
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


def _anchored(wanted: ForwardBackwardRequest | CustomGradients) -> bool:
    """Whether a loss compares with the trainer's own log-probs from when it first saw a batch."""
    return isinstance(wanted, ForwardBackwardRequest) and wanted.ratio_anchor == "Trainer"


def _steps_in(left: BatchLeft | None) -> int:
    return 0 if left is None else len(left.parts) * left.epochs - left.next


def _record(attempt: Attempt[G], part: Part[G]) -> None:
    attempt.groups += part.groups
    attempt.staleness += part.staleness
