"""From the rewards of groups to advantages: what the trainer and the loop both compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev

from espalier.api.run.advantage import Estimator, Scale

# A spread of rewards below this counts as none.
NO_SPREAD = 1e-6
# Added to a standard deviation before it divides.
EPSILON = 1e-6


def advantages(
    groups: Sequence[Sequence[float]], estimator: Estimator = "GroupMean", scale: Scale = "None"
) -> list[list[float]]:
    """One advantage for each reward of each group.

    GroupMean is the reward minus its group's mean, LeaveOneOut the reward minus the mean of the
    others of its group, None the reward itself. GroupStd divides by the population standard
    deviation of the group, BatchStd by that of all rewards given; where rewards do not spread,
    every scaled advantage is 0. ValueError for a group or a reward that has no advantage.
    """
    if estimator == "None" and scale == "GroupStd":
        raise ValueError("estimator None takes no group into account, and scale GroupStd is one's")
    for group in groups:
        _check(group, estimator)
    relative = [_relative(group, estimator) for group in groups]
    if scale == "GroupStd":
        return [_divided(row, pstdev(g)) for row, g in zip(relative, groups, strict=True)]
    if scale == "BatchStd":
        rewards = [reward for group in groups for reward in group]
        spread = pstdev(rewards) if rewards else 0.0
        return [_divided(row, spread) for row in relative]
    return relative


def _check(group: Sequence[float], estimator: Estimator) -> None:
    if not group:
        raise ValueError("a group has no rewards")
    wrong = [reward for reward in group if not math.isfinite(reward)]
    if wrong:
        raise ValueError(f"a reward is {wrong[0]}, which is no finite number")
    if estimator == "LeaveOneOut" and len(group) == 1:
        raise ValueError("estimator LeaveOneOut compares with the others of a group, and it is one")


def _relative(group: Sequence[float], estimator: Estimator) -> list[float]:
    if estimator == "None":
        return list(group)
    mean = fmean(group)
    # The mean of the others is as far from the mean, on the other side, as their number says.
    factor = len(group) / (len(group) - 1) if estimator == "LeaveOneOut" else 1.0
    return [factor * (reward - mean) for reward in group]


def _divided(values: Sequence[float], spread: float) -> list[float]:
    return [value / (spread + EPSILON) if spread > NO_SPREAD else 0.0 for value in values]
