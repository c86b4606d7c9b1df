"""What the engine asks of the processes that hold the policy: the seam between one rank and many.

The engine decides, logs and commits; a Compute only computes. Its weights and accumulated gradients
are the whole of its state, and both can be made again from the log and the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from typing_extensions import override

from espalier.api.wire import OptimStepRequest
from espalier.trainer import gradients, memory
from espalier.trainer.data import Datum, Limits
from espalier.trainer.gradients import KeptForward
from espalier.trainer.losses import LossSpec
from espalier.trainer.memory import Plan, TooLargeError
from espalier.trainer.metrics import Tally
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

    def admit(self, data: Sequence[Datum], *, training: bool) -> None:
        """413 if the memory cannot hold the batch however it is cut; computes nothing."""

    def score(
        self, data: Sequence[Datum], temperature: float, *, keep: str = ""
    ) -> list[list[float]]:
        """Log-probs of every datum's output tokens; accumulates nothing.

        ``keep`` names the forward for a later ``add_weights`` of the same data: a compute may then
        hold what spares that call its forward pass, at most for the latest name, until it is used
        or anything else is computed.
        """

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
        forward: str = "",
    ) -> Tally:
        """Accumulates the gradient of a client's loss from ``weights[d][t] = -dC/dlogprob``.

        ``forward`` is the name under which ``score`` was asked to keep; the sums are the same
        whether it still has it or not.
        """

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
        self.planner = memory.measure(policy)
        self._kept: tuple[str, KeptForward] | None = None

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
    def admit(self, data: Sequence[Datum], *, training: bool) -> None:
        self._plan(data, training=training)

    @override
    def score(
        self, data: Sequence[Datum], temperature: float, *, keep: str = ""
    ) -> list[list[float]]:
        self._kept = None
        if keep and gradients.can_keep(self.policy, data):
            # The rows of the backward pass, so that the sums do not depend on what is kept.
            plan = self._plan(data, training=True)
            if self.planner.holds(plan):
                kept = memory.attempt(
                    self.policy, plan, lambda: gradients.forward(self.policy, data, temperature)
                )
                self._kept = keep, kept
                return kept.logprobs(len(data))
        return memory.attempt(
            self.policy,
            self._plan(data, training=False),
            lambda: gradients.score(self.policy, data, temperature),
        )

    @override
    def add_loss(
        self, data: Sequence[Datum], spec: LossSpec, temperature: float, group_size: int | None
    ) -> Tally:
        self._kept = None
        return memory.attempt(
            self.policy,
            self._plan(data, training=True),
            lambda: gradients.add_loss(self.policy, data, spec, temperature, group_size),
        )

    @override
    def add_weights(
        self,
        data: Sequence[Datum],
        weights: Sequence[Sequence[float]],
        temperature: float,
        *,
        given: dict[str, float],
        group_size: int | None,
        forward: str = "",
    ) -> Tally:
        # The backward pass consumes the graph, so it is given up before.
        graphs = [self._kept[1]] if self._kept and forward and self._kept[0] == forward else []
        self._kept = None
        return memory.attempt(
            self.policy,
            self._plan(data, training=True),
            lambda: gradients.add_weights(
                self.policy,
                data,
                weights,
                temperature,
                given=given,
                group_size=group_size,
                kept=graphs.pop() if graphs else None,
            ),
        )

    @override
    def drop_gradients(self) -> None:
        self._kept = None
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
        self._kept = None
        self.policy.load(state)

    @override
    def reset(self) -> None:
        self._kept = None
        self.policy.reset()

    def _plan(self, data: Sequence[Datum], *, training: bool) -> Plan:
        cut = self.planner.training if training else self.planner.scoring
        try:
            return cut(data, self.policy.row_tokens)
        except TooLargeError as error:
            raise memory.too_large(error, data) from error
