"""The sums over gradient calls: what a step's metrics are made from, and its divisor."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import reduce

from espalier.api.run.loss import Aggregation

# How a field of two tallies adds up where it is no sum: what a call says once, such as its loss, is
# the later one's.
_RULE = "of_two"
_LATER = {_RULE: lambda _earlier, later: later}
_LARGEST = {_RULE: max}


@dataclass(frozen=True)
class Tally:
    """Sums over the tokens of one or more calls; tallies add.

    ``compared`` tokens had a sampler log-prob q; over them, with d = lp - q: the largest and the
    summed |d|, the summed d, the summed and the largest ratio exp(d), and the summed k3 estimate
    exp(d) - 1 - d. For ``assumed`` of them nobody named the temperature. ``unique`` tokens
    went through the trunk: a shared prompt counts once. ``datums`` are samples, ``rewards`` one for
    each trajectory, ``advantages`` those of ``trained_advantages``;
    ``sampled`` pairs the name of a Checkpoint with the reward of a trajectory that it sampled.

    ``counted`` tokens and ``sequences`` are what ``aggregation`` divides by. ``corrected`` tokens
    had an off-policy weight: the sum of the weights, and how many were truncated or masked.
    ``referred`` tokens had a log-prob of a reference policy: the summed k3 estimate of their KL.
    """

    loss_name: str = field(default="", metadata=_LATER)
    group_size: int = field(default=0, metadata=_LATER)
    loss: float = 0.0
    datums: int = 0
    tokens: int = 0
    unique: int = 0
    zero_gradient: int = 0
    clipped_low: int = 0
    clipped_high: int = 0
    compared: int = 0
    assumed: int = 0
    difference_max: float = field(default=0.0, metadata=_LARGEST)
    difference_sum: float = 0.0
    signed_sum: float = 0.0
    ratio_sum: float = 0.0
    ratio_max: float = field(default=0.0, metadata=_LARGEST)
    divergence_sum: float = 0.0
    entropy_sum: float = 0.0
    rewards: tuple[float, ...] = ()
    advantages: tuple[float, ...] = ()
    sampled: tuple[tuple[str, float], ...] = ()
    given: dict[str, float] = field(default_factory=dict, metadata={_RULE: operator.or_})
    aggregation: Aggregation = field(default="TokenSum", metadata=_LATER)
    aggregation_constant: int | None = field(default=None, metadata=_LATER)
    counted: int = 0
    sequences: int = 0
    corrected: int = 0
    correction_truncated: int = 0
    correction_masked: int = 0
    correction_weight_sum: float = 0.0
    referred: int = 0
    reference_kl_sum: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        """Adds two tallies, each field by its own rule: a sum, unless it says otherwise."""
        return Tally(
            **{
                field_.name: field_.metadata.get(_RULE, operator.add)(
                    getattr(self, field_.name), getattr(other, field_.name)
                )
                for field_ in fields(self)
            }
        )

    @property
    def step_factor(self) -> float:
        """What the sum of all gradients is multiplied by, once a step."""
        divisor = {
            "TokenSum": 1,
            "TokenMean": self.counted,
            "SequenceMean": self.sequences,
            "Constant": self.sequences * (self.aggregation_constant or 1),
        }[self.aggregation]
        return 1 / divisor


def total(tallies: Sequence[Tally]) -> Tally:
    """The sum of several calls' tallies."""
    return reduce(lambda one, other: one + other, tallies, Tally())
