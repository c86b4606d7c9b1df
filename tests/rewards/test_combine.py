"""From parts to rewards and advantages, and what is told of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.rewards.combine import advantages, normalized, weighted, with_advantages
from espalier.rewards.figures import TASKSET, by_reward, counted, told
from espalier.rewards.scored import Failed, Scored

VALUES = st.floats(-1e6, 1e6)


def scored(**parts: float) -> Scored:
    return Scored(sum(parts.values()), parts)


def test_a_reward_is_the_sum_of_its_parts_by_weight() -> None:
    weights = {"correct": 1.0, "style": 0.5, "curses": -2.0}
    assert weighted({"correct": 1, "style": 0.5, "curses": 0.25}, weights) == 0.75


def test_a_reward_with_a_part_missing_is_none_and_no_smaller_sum() -> None:
    assert weighted({"correct": 1}, {"correct": 1, "style": 1}) is None
    # Even where it would not count.
    assert weighted({"correct": 1}, {"correct": 1, "style": 0}) is None


def test_values_are_brought_to_mean_0_and_deviation_1_of_the_population() -> None:
    assert normalized([1, 3]) == pytest.approx([-1, 1], abs=2e-6)
    assert normalized([5, 5, 5]) == [0, 0, 0]
    assert normalized([7]) == [0]


@given(st.lists(VALUES, min_size=1, max_size=16))
def test_normalized_values_are_finite_and_sum_to_0(values: list[float]) -> None:
    found = normalized(values)
    assert all(map(math.isfinite, found))
    assert sum(found) == pytest.approx(0, abs=1e-3)


def test_a_reward_far_apart_does_not_hide_another_one() -> None:
    parts = [{"big": 0, "small": 0.1}, {"big": 1000, "small": 0}]
    found = advantages(parts, {"big": 1, "small": 1})
    # By sums the second would win by far; here each has won once.
    assert found == pytest.approx([0, 0], abs=1e-4)
    assert advantages(parts, {"big": 1, "small": 3}) == pytest.approx([2, -2], abs=1e-3)


def test_a_group_with_a_part_missing_has_no_advantages() -> None:
    assert advantages([{"a": 1}, {}], {"a": 1}) is None
    group = [scored(a=1), Scored(None)]
    assert with_advantages(group, {"a": 1}, "NormalizeThenSum") == group


def test_sums_are_left_to_the_trainer_to_compare() -> None:
    group = [scored(a=1), scored(a=0)]
    assert with_advantages(group, {"a": 1}, "SumThenNormalize") == group


def test_each_reward_is_told_before_its_weight() -> None:
    failed = (Failed("style", "Timeout", "no score within 5 s"),)
    group = [scored(correct=1, style=3), scored(correct=0, style=1), Scored(None, {}, failed)]
    assert by_reward(group) == {
        "reward/correct/mean": 0.5,
        "reward/correct/std": 0.5,
        "reward/style/mean": 2,
        "reward/style/std": 1,
        "reward/style/errors": 1,
    }
    assert counted(group) == {"Timeout": 1}


def test_the_one_reward_of_a_taskset_is_told_by_the_reward_itself() -> None:
    assert by_reward([Scored(1, {TASKSET: 1}), Scored(None, {}, (_late(TASKSET),))]) == {}


def test_the_log_tells_each_reward_and_cause_once_with_its_count() -> None:
    group = [Scored(None, {}, (_late("a"), _late("b"))), Scored(None, {}, (_late("a"),))]
    entries = told("t/0", group)
    assert [(e["reward"], e["cause"], e["count"]) for e in entries] == [
        ("a", "Timeout", 2),
        ("b", "Timeout", 1),
    ]


def _late(name: str) -> Failed:
    return Failed(name, "Timeout", "no score within 5 s")
