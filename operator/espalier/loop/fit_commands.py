"""A script's TrainingClient as the loop commands it; its own queue keeps term and keys."""

from __future__ import annotations

from espalier.api.objective import Objective
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
from espalier.client.answers import CommittedStep
from espalier.client.training_client import TrainingClient


class Commands:
    """See ``loop.recipe.Trainer``."""

    def __init__(self, client: TrainingClient) -> None:
        self._client = client

    async def zero_grad(self, *, term: int = 0) -> TrainerState:
        """Drops gradients."""
        return await self._client.zero_grad()

    async def batch(self) -> BatchLeft | None:
        """What is left of the batch that the latest step came from."""
        return await self._client.batch()

    async def forward(self, request: ForwardRequest, *, term: int = 0) -> ForwardResult:
        """The trainer's log-probs."""
        return await self._client.forward(
            request.inputs, group_size=request.group_size, reference=request.reference
        )

    async def forward_backward(
        self, request: ForwardBackwardRequest, *, term: int = 0
    ) -> ForwardBackwardResult:
        """Adds gradients."""
        return await self._client.forward_backward(
            request.inputs,
            loss_fn=request.loss_fn,
            loss_fn_config=request.loss_fn_config,
            advantage_estimator=request.advantage_estimator,
            advantage_scale=request.advantage_scale,
            objective=Objective(
                **{name: getattr(request, name) for name in Objective.model_fields}
            ),
        )

    async def backward(self, request: BackwardRequest, *, term: int = 0) -> ForwardBackwardResult:
        """Adds the gradients of a loss of the user's."""
        return await self._client.backward(
            request.forward_id, request.weights, metrics=request.metrics
        )

    async def optim_step(self, request: OptimStepRequest, *, term: int = 0) -> CommittedStep:
        """Takes the step."""
        given = {name: getattr(request, name) for name in request.model_fields_set}
        # Records that are given, even none, are all that is kept.
        given.pop("keep_rollouts", None)
        return await self._client.optim_step(**given)
