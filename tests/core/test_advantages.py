"""Rewards to advantages, by hand."""

from __future__ import annotations

import math

import pytest

from espalier.api.run.advantage import Estimator, Scale
from espalier.core.advantages import advantages

Groups = list[list[float]]
TABLE: dict[str, tuple[Groups, Estimator, Scale, Groups]] = {
    "mean": ([[1, 0, 5, 2]], "GroupMean", "None", [[-1, -2, 3, 0]]),
    "mean of each group": ([[1, 0], [5, 1]], "GroupMean", "None", [[0.5, -0.5], [2, -2]]),
    "mean of equal rewards": ([[0.1, 0.1, 0.1]], "GroupMean", "None", [[0, 0, 0]]),
    "mean of a group of one": ([[7]], "GroupMean", "None", [[0]]),
    "the others": ([[1, 0, 5]], "LeaveOneOut", "None", [[-1.5, -3, 4.5]]),
    "the others, equal": ([[2, 2]], "LeaveOneOut", "None", [[0, 0]]),
    "the reward itself": ([[1, 0], [7]], "None", "None", [[1, 0], [7]]),
    "spread of the group": ([[1, 0], [9, 1]], "GroupMean", "GroupStd", [[1, -1], [1, -1]]),
    "spread of a constant group": ([[3, 3], [1, 0]], "GroupMean", "GroupStd", [[0, 0], [1, -1]]),
    "hardly any spread": ([[1, 1 + 1e-7]], "GroupMean", "GroupStd", [[0, 0]]),
    "spread of a group of one": ([[7]], "GroupMean", "GroupStd", [[0]]),
    "the others by the spread": ([[1, 0]], "LeaveOneOut", "GroupStd", [[2, -2]]),
    "spread of all": ([[2, 0], [2, 0]], "GroupMean", "BatchStd", [[1, -1], [1, -1]]),
    "spread of all, unlike": ([[4, 4], [0, 0]], "GroupMean", "BatchStd", [[0, 0], [0, 0]]),
    "reward by the spread of all": ([[4], [0]], "None", "BatchStd", [[2], [0]]),
    "no spread at all": ([[4], [4]], "None", "BatchStd", [[0], [0]]),
    "no groups": ([], "GroupMean", "BatchStd", []),
}


@pytest.mark.parametrize(
    ("groups", "estimator", "scale", "expected"), TABLE.values(), ids=TABLE.keys()
)
def test_advantages(groups: Groups, estimator: Estimator, scale: Scale, expected: Groups) -> None:
    found = advantages(groups, estimator, scale)
    assert found == [pytest.approx(row, abs=1e-5) for row in expected]


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others() -> None:
    rewards = [0.3, -2.0, 11.0, 0.25, 4.0]
    by_hand = [r - (sum(rewards) - r) / (len(rewards) - 1) for r in rewards]
    assert advantages([rewards], "LeaveOneOut") == [pytest.approx(by_hand)]


@pytest.mark.parametrize(
    ("groups", "estimator", "scale", "says"),
    [
        ([[1.0, math.nan]], "GroupMean", "None", "nan"),
        ([[1.0, math.inf]], "None", "None", "inf"),
        ([[]], "GroupMean", "None", "no rewards"),
        ([[1.0, 2.0], [1.0]], "LeaveOneOut", "None", "the others of a group"),
        ([[1.0, 2.0]], "None", "GroupStd", "GroupStd"),
    ],
)
def test_what_has_no_advantage_is_refused(
    groups: Groups, estimator: Estimator, scale: Scale, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        advantages(groups, estimator, scale)
