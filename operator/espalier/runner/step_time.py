"""For how long a step and each command of the trainer may take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from espalier.api.wire.batch_left import BatchLeft
from espalier.api.wire.gradients import (
    BackwardRequest,
    ForwardBackwardRequest,
    ForwardBackwardResult,
    ForwardRequest,
    ForwardResult,
)
from espalier.api.wire.step import OptimStepRequest
from espalier.api.wire.trainer import TrainerState
from espalier.client import GatewayClient
from espalier.client.answers import CommittedStep
from espalier.runner.run_end import UserError
from espalier.runner.within import within

T = TypeVar("T")


class TimedTrainer:
    """Commands the trainer of a run (``loop.recipe.Trainer``), each within ``seconds``.

    The client sends a command until it is answered, and what was sent is applied once: a run that
    is begun again finds the trainer before the command or after it.
    """

    def __init__(self, client: GatewayClient) -> None:
        self._client = client
        self.seconds: float | None = None

    async def zero_grad(self, *, term: int = 0) -> TrainerState:
        """Drops gradients."""
        return await self._within("zero-grad", self._client.zero_grad(term=term))

    async def batch(self) -> BatchLeft | None:
        """What is left of the batch that the latest step came from."""
        return await self._within("batch", self._client.batch())

    async def forward(self, request: ForwardRequest, *, term: int = 0) -> ForwardResult:
        """The trainer's log-probs; UserError ``TrainTimeout``."""
        return await self._within("forward", self._client.forward(request, term=term))

    async def forward_backward(
        self, request: ForwardBackwardRequest, *, term: int = 0
    ) -> ForwardBackwardResult:
        """Adds gradients; UserError ``TrainTimeout``."""
        work = self._client.forward_backward(request, term=term)
        return await self._within("forward-backward", work)

    async def backward(self, request: BackwardRequest, *, term: int = 0) -> ForwardBackwardResult:
        """Adds the gradients of a loss of the user's; UserError ``TrainTimeout``."""
        return await self._within("backward", self._client.backward(request, term=term))

    async def optim_step(self, request: OptimStepRequest, *, term: int = 0) -> CommittedStep:
        """Takes the step; UserError ``TrainTimeout``."""
        return await self._within("optim-step", self._client.optim_step(request, term=term))

    async def _within(self, command: str, work: Awaitable[T]) -> T:
        seconds = self.seconds
        return await within(
            seconds,
            work,
            lambda: UserError(
                "TrainTimeout",
                f"{command} took longer than {seconds} s (timeouts.trainSeconds)",
                "Raise spec.timeouts.trainSeconds, or give a step less: groupsPerStep, groupSize, "
                "sampling.maxTokens",
            ),
        )


class StepTime:
    """The time that has gone into the step after one position of the trainer.

    What the run waits for between two rounds, such as a pin that pauses it, is not among it.
    """

    def __init__(self) -> None:
        self._position: object = None
        self._spent = 0.0

    async def within(
        self,
        position: object,
        seconds: float | None,
        round_: Awaitable[T],
        doing: Callable[[], str],
    ) -> T:
        """One round of the step; UserError ``StepTimeout`` that names what was waited for.

        Args:
            position: of the trainer; another one begins another step.
            seconds: of all rounds of the step; None: no bound.
            round_: samples and, if it can, trains.
            doing: what it does now.
        """
        if position != self._position:
            self._position, self._spent = position, 0.0
        clock = asyncio.get_running_loop().time
        begun, left = clock(), None if seconds is None else seconds - self._spent
        try:
            return await within(
                left,
                round_,
                lambda: UserError(
                    "StepTimeout",
                    f"the step took longer than {seconds} s (timeouts.stepSeconds), and was "
                    f"{doing()}",
                    "Raise spec.timeouts.stepSeconds, lower groupsPerStep, groupSize or "
                    "sampling.maxTokens, or bound stragglers with timeouts.groupSeconds",
                ),
            )
        finally:
            self._spent += clock() - begun
