"""Rewards that compare texts."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest

from espalier.rewards.text import How, TextReward, last_boxed, number


@pytest.mark.parametrize(
    ("completion", "inner"),
    [
        (r"so \boxed{42}", "42"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{ \boxed{3} }", "3"),
        (r"} \boxed{4}", "4"),
        ("none", None),
        (r"\boxed{", None),
    ],
)
def test_the_last_box_that_is_closed_counts(completion: str, inner: str | None) -> None:
    assert last_boxed(completion) == inner


def test_many_open_boxes_take_no_longer_than_their_text() -> None:
    began = time.monotonic()
    assert last_boxed(r"\boxed{" * 200_000) is None
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1,000.5", Decimal("-1000.5")),
        ("$7", 7),
        ("1e3", 1000),
        ("nan", None),
        ("Infinity", None),
        ("1e999999999", None),
        ("9" * 65, None),
        ("", None),
        ("two", None),
    ],
)
def test_a_number_is_finite_and_of_a_sane_size(text: str, value: Decimal | int | None) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    ("how", "completion", "reward"),
    [
        ("exact", "<answer>4.0</answer>", 0),
        ("exact", "<answer> 4 </answer>", 1),
        ("exact", "4", 0),
        ("numeric", "<answer>4.04</answer>", 1),
        ("numeric", "<answer>4.06</answer>", 0),
        ("numeric", "<answer>four</answer>", 0),
        ("numeric", "4", 0),
        ("boxed", r"\boxed{$4 $}", 1),
        ("boxed", r"\boxed{5}", 0),
        ("boxed", "4", 0),
    ],
)
def test_each_kind_compares_in_its_way(how: How, completion: str, reward: float) -> None:
    one = TextReward(how, tolerance=Decimal("0.05"))
    assert one.needs_answer
    assert one.score("4", completion) == reward


def test_a_pattern_matches_or_its_group_is_the_answer() -> None:
    found = TextReward("regex", pattern=r"^Therefore")
    assert not found.needs_answer
    assert found.score("", "Therefore 3") == 1
    assert found.score("", "so, Therefore") == 0
    group = TextReward("regex", pattern=r"is (\w+)|none", group=1)
    assert group.needs_answer
    assert group.score("four", "it is four") == 1
    assert group.score("four", "it is five") == 0
    assert group.score("four", "none") == 0


def test_an_expected_answer_that_is_no_number_is_no_wrong_answer_of_the_model() -> None:
    with pytest.raises(ValueError, match="'four' is no number"):
        TextReward("numeric").score("four", "<answer>4</answer>")
