"""What is said of a taskset before training: figures, one sentence, and what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.runner.test_rewards import group

from espalier.api.run.group_filter import GroupFilter
from espalier.runner.calibration import Lengths, calibrate
from espalier.runner.rewards import Group

RULES = GroupFilter()


def test_the_figures_are_those_of_the_groups() -> None:
    # The n-th answer of a group has n tokens, every prompt two.
    done = calibrate([group(0, 1), group(1, 1), group(0, 0), group(0, None)], RULES, too_long=3)
    assert (done.groups, done.answers, done.too_long) == (4, 8, 3)
    assert done.reward_mean == pytest.approx(3 / 7)
    # Deviations of 0.5, 0, 0 and 0.
    assert done.spread == pytest.approx(0.125)
    assert (done.teaching, done.solved, done.failed) == (0.25, 0.25, 0.25)
    assert done.scorer_errors == 1
    assert done.prompt_tokens == Lengths(2, 2, 2, 2)
    assert done.answer_tokens == Lengths(1, 1, 2, 2)


def test_lengths_are_lengths_that_occurred() -> None:
    assert Lengths.of([5]) == Lengths(5, 5, 5, 5)
    assert Lengths.of(list(range(1, 101))) == Lengths(1, 50, 90, 100)


@pytest.mark.parametrize(
    ("groups", "verdict", "remedy"),
    [
        ([group(0, 1), group(0, 1)], "100% of the groups teach", ""),
        ([group(1, 1)], "every group of completions had equal rewards", "solves every task"),
        ([group(0, 0)], "every group of completions had equal rewards", "solves none"),
        ([group(0, 0, finish="length")], "100% of completions cut", "raise sampling.maxTokens"),
        ([group(0, 1, finish="length")], "100% of the answers are cut", "Raise sampling.maxTokens"),
        ([group(0, 1), *[group(1, 1)] * 4], "only 20% of the groups", "raise groupSize"),
        ([group(None, None)], "no reward at all", "The scorer fails"),
    ],
)
def test_the_sentence_names_what_stands_in_the_way(
    groups: list[Group], verdict: str, remedy: str
) -> None:
    done = calibrate(groups, RULES)
    assert verdict in done.verdict
    assert remedy in done.remedy
    assert bool(remedy) == bool(done.remedy)


def test_tasks_that_none_fit_are_a_sentence_too() -> None:
    done = calibrate([], RULES, too_long=4)
    assert done.verdict == "none of 4 tasks fits the context"
    assert "rollout.maxModelTokens" in done.remedy
    assert (done.reward_mean, done.prompt_tokens) == (None, None)


def test_a_group_that_the_run_leaves_out_for_a_cut_answer_does_not_teach() -> None:
    cut, whole = group(0, 1, finish="length"), group(0, 1)
    assert calibrate([cut, whole], RULES).teaching == 1
    cut = replace(cut, scores=tuple(replace(score, leaves_out=True) for score in cut.scores))
    assert calibrate([cut, whole], RULES).teaching == 0.5
    assert "overlong.policy is Drop" in calibrate([cut], RULES).verdict
