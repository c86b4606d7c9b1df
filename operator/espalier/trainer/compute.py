"""What the engine asks of the processes that hold the policy: the seam between one rank and many.

The engine decides, logs and commits; a Compute only computes. Its weights and accumulated gradients
are the whole of its state, and both can be made again from the log and the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from typing_extensions import override

from espalier.api.wire import OptimStepRequest
from espalier.trainer import gradients
from espalier.trainer.data import Datum, Limits
from espalier.trainer.gradients import Tally
from espalier.trainer.losses import LossSpec
from espalier.trainer.model import Policy, State
from espalier.trainer.optimizer import Moments, Proposal, fresh_moments, propose


class Compute(Protocol):
    """One policy on one or more ranks. Every call is complete when it returns."""

    @property
    def limits(self) -> Limits:
        """What a request may contain."""

    @property
    def lora(self) -> tuple[int, int]:
        """Rank and alpha of the adapter."""

    def adapter_config(self) -> dict[str, Any]:
        """PEFT's configuration of the adapter."""

    def score(self, data: Sequence[Datum], temperature: float) -> list[list[float]]:
        """Log-probs of every datum's output tokens, without gradients."""

    def add_loss(
        self, data: Sequence[Datum], spec: LossSpec, temperature: float, group_size: int | None
    ) -> Tally:
        """Accumulates the gradient of a built-in loss."""

    def add_weights(
        self,
        data: Sequence[Datum],
        weights: Sequence[Sequence[float]],
        temperature: float,
        *,
        given: dict[str, float],
        group_size: int | None,
    ) -> Tally:
        """Accumulates the gradient of a client's loss from ``weights[d][t] = -dC/dlogprob``."""

    def drop_gradients(self) -> None:
        """Forgets what was accumulated."""

    def fresh_moments(self) -> Moments:
        """Adam before its first step."""

    def propose(self, moments: Moments, values: OptimStepRequest) -> Proposal:
        """What a step would make of the weights; changes nothing."""

    def check(self, state: State) -> None:
        """409 if a checkpoint has other names or shapes than the policy."""

    def load(self, state: State) -> None:
        """Sets every trained weight."""

    def reset(self) -> None:
        """The weights before the first step."""


class LocalCompute(Compute):
    """The policy in this process."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @property
    @override
    def limits(self) -> Limits:
        return self.policy.limits

    @property
    @override
    def lora(self) -> tuple[int, int]:
        return self.policy.adapter.rank, self.policy.adapter.alpha

    @override
    def adapter_config(self) -> dict[str, Any]:
        return self.policy.adapter_config()

    @override
    def score(self, data: Sequence[Datum], temperature: float) -> list[list[float]]:
        return gradients.score(self.policy, data, temperature)

    @override
    def add_loss(
        self, data: Sequence[Datum], spec: LossSpec, temperature: float, group_size: int | None
    ) -> Tally:
        return gradients.add_loss(self.policy, data, spec, temperature, group_size)

    @override
    def add_weights(
        self,
        data: Sequence[Datum],
        weights: Sequence[Sequence[float]],
        temperature: float,
        *,
        given: dict[str, float],
        group_size: int | None,
    ) -> Tally:
        return gradients.add_weights(
            self.policy, data, weights, temperature, given=given, group_size=group_size
        )

    @override
    def drop_gradients(self) -> None:
        self.policy.drop_gradients()

    @override
    def fresh_moments(self) -> Moments:
        return fresh_moments(self.policy.parameters)

    @override
    def propose(self, moments: Moments, values: OptimStepRequest) -> Proposal:
        return propose(self.policy.parameters, moments.to(self.policy.device), values)

    @override
    def check(self, state: State) -> None:
        self.policy.check(state)

    @override
    def load(self, state: State) -> None:
        self.policy.load(state)

    @override
    def reset(self) -> None:
        self.policy.reset()
