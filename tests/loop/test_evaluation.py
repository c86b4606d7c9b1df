"""pass@k against counting by hand, and intervals that a seed's spread can be read against."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest

from espalier.loop.evaluation import figures, pass_at_k


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_solution(samples: int) -> None:
    for solved, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        subsets = list(itertools.combinations(range(samples), k))
        holding = sum(any(index < solved for index in subset) for subset in subsets)
        assert pass_at_k(samples, solved, k) == pytest.approx(
            float(Fraction(holding, len(subsets)))
        )


@pytest.mark.parametrize("k", [0, 5])
def test_more_answers_than_there_are_have_no_estimate(k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} needs"):
        pass_at_k(4, 2, k)


def test_two_tasks_of_four_samples_are_two_tasks_not_eight() -> None:
    found = figures([[1, 0, 0, 0], [1, 1, 1, 1]], [1, 4])
    assert found["pass@1"] == pytest.approx(0.625)
    assert found["pass@4"] == 1.0
    assert found["mean_reward"] == pytest.approx(0.625)
    half = 1.96 * (2 * 0.375**2) ** 0.5 / 2**0.5
    assert found["mean_reward_high"] - found["mean_reward"] == pytest.approx(half)
    assert found["mean_reward"] - found["mean_reward_low"] == pytest.approx(half)


def test_partial_rewards_solve_nothing() -> None:
    assert figures([[0.99, 0.5]], [1, 2]) == {
        "mean_reward": pytest.approx(0.745),
        "mean_reward_low": pytest.approx(0.745),
        "mean_reward_high": pytest.approx(0.745),
        "pass@1": 0.0,
        "pass@2": 0.0,
    }
