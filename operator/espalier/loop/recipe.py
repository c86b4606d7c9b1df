"""What a step is made of, and whom the loop commands to take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Generic, Protocol, TypeVar

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
from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.client.answers import CommittedStep
from espalier.loop.custom_loss import CustomGradients
from espalier.loop.minibatches import Uses
from espalier.loop.schedule import Place

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

    async def backward(self, request: BackwardRequest, *, term: int = 0) -> ForwardBackwardResult:
        """Adds the gradients of a loss of the user's."""
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

    def chosen(self, groups: Sequence[G], place: Place) -> Sequence[G]:
        """Of all groups up to the round of a place those that are trained on.

        None where too few teach, or more are to be sampled.
        """
        ...

    def inputs(self, chosen: Sequence[G]) -> Sequence[Sequence[TrajectoryPayload]]:
        """Their trajectories, with group ids."""
        ...

    def gradients(
        self, inputs: Sequence[TrajectoryPayload]
    ) -> ForwardBackwardRequest | CustomGradients:
        """What adds the gradients of whole groups."""
        ...

    def step(self, state: TrainerState, attempt: Attempt[G]) -> OptimStepRequest:
        """The command that takes the step."""
        ...
