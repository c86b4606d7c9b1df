"""Groups: what is dropped, what the trainer gets, what is recorded."""

from __future__ import annotations

from typing import Literal

import pytest

from espalier.client import Completion
from espalier.runner.rewards import Group, kept, metrics, payloads, records, uninformative
from espalier.runner.tasks import Message, Score, Task


def group(*rewards: float, finish: str = "stop", failed: bool = False, name: str = "t/0") -> Group:
    """One completion per reward; the n-th has n tokens."""
    completions = tuple(
        Completion(f"text {n}", (1, 2), tuple(range(n)), (-0.5,) * n, finish)
        for n, _ in enumerate(rewards, 1)
    )
    task = Task(name, (Message("user", "7="),))
    return Group(task, completions, tuple(Score(reward, failed) for reward in rewards))


@pytest.mark.parametrize(
    ("rewards", "source", "teaches"),
    [
        ((0.0, 1.0), "Estimated", True),
        ((0.0, 0.0), "Estimated", False),
        ((1.0, 1.0), "Estimated", False),
        ((0.01, 0.01), "Estimated", False),
        ((0.3, 0.1 + 0.2), "Estimated", False),
        # A precomputed advantage is the reward itself: equal ones teach unless they are 0.
        ((1.0, 1.0), "Precomputed", True),
        ((-1.0, -1.0), "Precomputed", True),
        ((0.0, 0.0), "Precomputed", False),
    ],
)
def test_a_group_teaches_when_an_advantage_is_not_zero(
    rewards: tuple[float, ...], source: Literal["Estimated", "Precomputed"], teaches: bool
) -> None:
    assert group(*rewards).can_teach(source) is teaches
    assert (kept([group(*rewards)], "Drop", source) != []) is teaches
    # Where all are kept, one that teaches takes the others along.
    assert (kept([group(*rewards)], "Keep", source) != []) is teaches
    assert len(kept([group(0.0, 1.0), group(*rewards)], "Keep", source)) == 2


def test_the_trainer_gets_whole_groups_in_a_row() -> None:
    inputs = payloads([group(0, 1), group(1, 0)], "Estimated")
    assert [one.reward for one in inputs] == [0, 1, 1, 0]
    assert [one.samples[0].output_token_ids for one in inputs] == [[0], [0, 1]] * 2
    assert inputs[1].samples[0].output_logprobs == [-0.5, -0.5]
    assert inputs[1].samples[0].prompt_token_ids == [1, 2]
    assert all(one.advantage is None for one in inputs)


def test_a_precomputed_advantage_is_the_reward() -> None:
    assert [one.advantage for one in payloads([group(0.25, 1)], "Precomputed")] == [0.25, 1]


def test_metrics_are_over_everything_sampled() -> None:
    seen = metrics([group(0, 1), group(1, 1, finish="length"), group(0, 0, failed=True)], dropped=2)
    assert seen == {
        "reward/mean": 0.5,
        "reward/std": 0.5,
        "reward/scorer_errors": 2,
        "group/zero_variance_fraction": pytest.approx(2 / 3),
        "group/dropped": 2,
        "completion/tokens_mean": 1.5,
        "completion/truncated_fraction": pytest.approx(1 / 3),
    }


def test_a_record_tells_the_rollout_and_whether_it_was_trained_on() -> None:
    # Equal groups: only their identity tells which one was kept.
    one, other = group(0, 1), group(0, 1)
    lines = records([one, other], [other])
    assert lines[1] == {
        "task": "t/0",
        "prompt": [{"role": "user", "content": "7="}],
        "completion": "text 2",
        "reward": 1,
        "tokens": 2,
        "finish_reason": "stop",
        "trained": False,
    }
    assert [line["trained"] for line in lines] == [False, False, True, True]


@pytest.mark.parametrize(
    ("one", "remedy"),
    [
        (group(1, 1), "choose harder ones"),
        (group(1, 1, finish="length"), "choose harder ones"),
        (group(0, 0, finish="length"), "raise sampling.maxTokens"),
        (group(0, 0, failed=True), "The scorer raises"),
        (group(0, 0), "choose easier tasks"),
    ],
)
def test_rewards_without_signal_name_the_likely_remedy(one: Group, remedy: str) -> None:
    detail, named = uninformative([one], rounds=20)
    assert remedy in named
    assert "in 20 rounds every group" in detail
