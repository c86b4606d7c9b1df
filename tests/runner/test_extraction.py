"""How the answer is found in what a model wrote."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.rewards.extraction import extract, is_number, matches


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<answer>4</answer>", "4"),
        ("<answer>3</answer> no, <answer> 4\n</answer>", "4"),
        ("<answer>two\nlines</answer>", "two\nlines"),
        ("<answer></answer>", ""),
        ("<answer>4", None),
        ("4", None),
        ("", None),
    ],
)
def test_answer_tag_takes_the_last_complete_element(completion: str, answer: str | None) -> None:
    assert extract("AnswerTag", completion) == answer


@given(st.lists(st.sampled_from(["<answer>", "</answer>", "<answer", "4", " ", "\n"])))
def test_answer_tag_takes_what_the_plain_expression_would(parts: list[str]) -> None:
    text = "".join(parts)
    found = re.findall("<answer>(.*?)</answer>", text, re.DOTALL)
    assert extract("AnswerTag", text) == (found[-1].strip() if found else None)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "text",
    [part * 500_000 for part in ("<answer>", "<answer></answer", "1,111", "1", "-", "1,11", "1.")],
    ids=range(7),
)
def test_a_long_text_takes_no_longer_than_its_length_asks(text: str) -> None:
    # Each tag alone would make an expression read the whole rest: hours.
    for mode in ("AnswerTag", "LastNumber", "Whole"):
        matches(mode, extract(mode, text), "7")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("7", "7"),
        ("7 + 5 = 12.", "12"),
        ("The sum is 1,234,567!", "1234567"),
        ("12,5", "5"),
        ("3.50", "3.50"),
        ("= -4", "-4"),
        ("= −4", "-4"),
        ("-4", "-4"),
        ("9-4", "4"),
        ("x1-4", "4"),
        ("(9)-4", "4"),
        ("9 - 4", "4"),
        ("none", None),
        ("", None),
    ],
)
def test_last_number_takes_the_last_number_with_its_sign(
    completion: str, answer: str | None
) -> None:
    assert extract("LastNumber", completion) == answer


@pytest.mark.parametrize(("completion", "answer"), [(" Paris\n", "Paris"), (" \n", None)])
def test_whole_takes_the_text_without_surrounding_blanks(
    completion: str, answer: str | None
) -> None:
    assert extract("Whole", completion) == answer


@pytest.mark.parametrize(
    ("answer", "expected", "equal"),
    [("12", "12", True), ("12.0", "12", True), ("1200", "1,200", True), ("13", "12", False)],
)
def test_last_number_compares_numbers_and_not_text(answer: str, expected: str, equal: bool) -> None:
    assert matches("LastNumber", answer, expected) is equal


def test_text_is_compared_as_it_is_but_for_blanks() -> None:
    assert matches("Whole", "Paris", " Paris ")
    assert not matches("Whole", "paris", "Paris")
    assert not matches("AnswerTag", None, "")


@given(st.text(max_size=60))
def test_whatever_last_number_finds_can_be_compared(completion: str) -> None:
    answer = extract("LastNumber", completion)
    if answer is not None:
        assert is_number(answer)
        assert matches("LastNumber", answer, answer)


@given(st.integers(-(10**9), 10**9), st.text("abc .:=", max_size=8))
def test_a_number_at_the_end_is_found_after_any_words(number: int, words: str) -> None:
    assert extract("LastNumber", f"{words} {number}.") == str(number)
