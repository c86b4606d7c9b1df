"""A loss of the user's: it is given log-probs, and its gradient by them is what the trainer gets.

The trainer scores a batch (``forward``) and adds the gradient of a sum over tokens whose weights
are that gradient (``backward``): by the chain rule the gradient of the loss itself. Pure.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from statistics import fmean

from espalier.api.run.advantage import Estimator, Scale
from espalier.api.wire.gradients import BackwardRequest, DatumTensors, ForwardRequest, ForwardResult
from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.core.advantages import advantages

REFERENCE_KL = "policy/reference_kl"
# Bounds exp(d): a reference's log-prob may be arbitrarily far off.
_MOST = 80.0


class LossDatum(DatumTensors):
    """A sample as a loss is given it, with the advantage of each of its output tokens."""

    advantages: list[float]


# ``-dLoss/dlogprob`` of each sample's tokens, and metrics of the step.
Weighed = tuple[list[list[float]], Mapping[str, float]]
Differentiate = Callable[[Sequence[LossDatum]], Awaitable[Weighed]]


@dataclass(frozen=True)
class CustomGradients:
    """The gradients of a loss of the user's for one optimizer step, in place of a command.

    Attributes:
        inputs: trajectories of whole groups, with group ids.
        differentiate: the loss.
        estimator, scale: of the advantages of trajectories that bring none.
        reference: whose log-probs the loss is given too: ``base``, a Checkpoint's name, or None.
        group_size: of all groups, where it is one; for the record.
    """

    inputs: Sequence[TrajectoryPayload]
    differentiate: Differentiate
    estimator: Estimator = "GroupMean"
    scale: Scale = "None"
    reference: str | None = None
    group_size: int | None = None

    @property
    def forward(self) -> ForwardRequest:
        """The command whose answer the loss is given."""
        return ForwardRequest(
            inputs=list(self.inputs), group_size=self.group_size, reference=self.reference
        )

    async def backward(self, seen: ForwardResult) -> BackwardRequest:
        """The command that adds the gradients, once the trainer has seen the batch.

        Raises:
            ValueError: a group has no advantages (``core.advantages``).
        """
        data = _data(self.inputs, seen.data, _estimated(self.inputs, self.estimator, self.scale))
        weights, metrics = await self.differentiate(data)
        return BackwardRequest(
            forward_id=seen.forward_id, weights=weights, metrics={**metrics, **_distance(data)}
        )


def _estimated(
    inputs: Sequence[TrajectoryPayload], estimator: Estimator, scale: Scale
) -> list[float]:
    """The advantage of each trajectory: its own, or estimated within its group."""
    groups: dict[str | None, list[int]] = {}
    for index, trajectory in enumerate(inputs):
        if trajectory.advantage is None:
            groups.setdefault(trajectory.group_id, []).append(index)
    rewards = [[inputs[index].reward for index in group] for group in groups.values()]
    found = [trajectory.advantage or 0.0 for trajectory in inputs]
    for group, values in zip(groups.values(), advantages(rewards, estimator, scale), strict=True):
        for index, value in zip(group, values, strict=True):
            found[index] = value
    return found


def _data(
    inputs: Sequence[TrajectoryPayload], seen: Sequence[DatumTensors], estimated: Sequence[float]
) -> list[LossDatum]:
    """One datum for each sample, in the order of the trajectories and their turns."""
    samples = [
        (sample, advantage)
        for trajectory, advantage in zip(inputs, estimated, strict=True)
        for sample in trajectory.samples
    ]
    return [
        LossDatum(**dict(datum), advantages=sample.advantages or [advantage] * len(datum.logprobs))
        for datum, (sample, advantage) in zip(seen, samples, strict=True)
    ]


def _distance(data: Sequence[LossDatum]) -> dict[str, float]:
    """The KL(policy || reference) of the trained tokens, estimator k3; none without a reference."""
    distances = [
        reference - own
        for datum in data
        for own, reference, kept in zip(
            datum.logprobs, datum.reference_logprobs or (), datum.mask, strict=False
        )
        if kept
    ]
    bounded = [min(distance, _MOST) for distance in distances]
    return {REFERENCE_KL: fmean(exp(d) - 1 - d for d in bounded)} if bounded else {}
