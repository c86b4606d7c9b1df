"""Groups: what is dropped, what the trainer gets, what is recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from espalier.api.run.group_filter import GroupFilter
from espalier.api.run.taskset import Taskset
from espalier.client import Completion
from espalier.rewards.figures import TASKSET, told
from espalier.rewards.scored import Failed, Scored
from espalier.runner.answers import answered
from espalier.runner.rewards import Group, kept, metrics, payloads, records, uninformative
from espalier.runner.task_protocol import Message, Task


def group(*rewards: float | None, finish: str = "stop", name: str = "t/0") -> Group:
    """One completion per reward, None for one whose scorer took too long; the n-th has n tokens."""
    completions = tuple(
        Completion(f"text {n}", (1, 2), tuple(range(n)), (-0.5,) * n, finish)
        for n, _ in enumerate(rewards, 1)
    )
    late = Failed(TASKSET, "Timeout", "no score within 5 s")
    scores = tuple(
        Scored(None, {}, (late,)) if reward is None else Scored(reward, {TASKSET: reward})
        for reward in rewards
    )
    task = Task(name, (Message("user", "7="),))
    return Group(task, completions, scores)


@pytest.mark.parametrize(
    ("rewards", "teaches"),
    [
        ((0.0, 1.0), True),
        ((0.0, 0.0), False),
        ((1.0, 1.0), False),
        ((0.01, 0.01), False),
        ((0.3, 0.1 + 0.2), False),
        # The mean of those that were scored is no baseline of the whole.
        ((0.0, 1.0, None), False),
        ((None, None), False),
    ],
)
def test_a_group_teaches_when_an_advantage_is_not_zero(
    rewards: tuple[float | None, ...], teaches: bool
) -> None:
    assert group(*rewards).can_teach is teaches
    drop, keep = GroupFilter(zero_variance="Drop"), GroupFilter(zero_variance="Keep")
    assert (kept([group(*rewards)], drop) != []) is teaches
    # Where all are kept, one that teaches takes the others along.
    assert (kept([group(*rewards)], keep) != []) is teaches
    assert len(kept([group(0.0, 1.0), group(*rewards)], keep)) == 2 - (None in rewards)


@pytest.mark.parametrize("zero_variance", ["Keep", "Drop"])
def test_groups_with_a_completion_that_the_run_leaves_out_go_whole(
    zero_variance: Literal["Keep", "Drop"],
) -> None:
    cut, whole = group(0, 1), group(0, 1, name="t/1")
    cut = replace(cut, scores=(replace(cut.scores[0], leaves_out=True), cut.scores[1]))
    rules = GroupFilter(zero_variance=zero_variance)
    assert kept([cut, whole], rules) == [whole]
    assert kept([cut], rules) == []


def test_a_masked_completion_counts_in_its_group_and_trains_nothing() -> None:
    one = group(0, 1, 1)
    one = replace(one, scores=(*one.scores[:2], replace(one.scores[2], masked=True)))
    inputs = payloads(one, "g")
    assert [given.reward for given in inputs] == [0, 1, 1]
    assert [given.samples[0].masked for given in inputs] == [False, False, True]
    assert one.can_teach
    silent = replace(one, scores=tuple(replace(score, masked=True) for score in one.scores))
    assert not silent.can_teach


def test_advantages_of_rewards_that_are_normalized_on_their_own_reach_the_trainer() -> None:
    one = group(1, 1)
    scores = [replace(one.scores[0], advantage=0.5), replace(one.scores[1], advantage=-0.5)]
    one = replace(one, scores=tuple(scores))
    # Their sums are equal; their advantages are not.
    assert one.can_teach
    assert [given.advantage for given in payloads(one, "g")] == [0.5, -0.5]
    equal = replace(one, scores=tuple(replace(score, advantage=0.0) for score in scores))
    assert equal.zero_variance


def test_the_trainer_gets_every_rollout_under_the_name_of_its_group() -> None:
    inputs = payloads(group(0, 1), "g")
    assert [(one.reward, one.group_id) for one in inputs] == [(0, "g"), (1, "g")]
    assert [one.samples[0].output_token_ids for one in inputs] == [[0], [0, 1]]
    assert inputs[1].samples[0].output_logprobs == [-0.5, -0.5]
    assert inputs[1].samples[0].prompt_token_ids == [1, 2]
    assert all(one.advantage is None for one in inputs)


def test_metrics_are_over_everything_sampled() -> None:
    seen = metrics([group(0, 1), group(1, 1, finish="length"), group(0, None)], dropped=2)
    assert seen == {
        # Of the five that have a reward.
        "rollout/reward/mean": pytest.approx(3 / 5),
        "rollout/reward/std": pytest.approx((6 / 25) ** 0.5),
        "rollout/reward/min": 0,
        "rollout/reward/max": 1,
        "rollout/scorer_errors": 1,
        "rollout/scorer_errors_timeout": 1,
        "group/zero_variance_fraction": pytest.approx(2 / 3),
        "group/dropped": 2,
        "group/all_pass_fraction": 0.5,
        "group/all_fail_fraction": 0,
        "rollout/response_tokens/mean": 1.5,
        "rollout/response_tokens/max": 2,
        "completion/tokens_mean": 1.5,
        "completion/tokens_total": 9.0,
        "completion/unscored_fraction": pytest.approx(1 / 6),
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
        "rewards": {"taskset": 1},
        "tokens": 2,
        "finish_reason": "stop",
        "trained": False,
    }
    assert [line["trained"] for line in lines] == [False, False, True, True]


def test_a_record_shows_the_calls_of_tools_behind_the_text() -> None:
    given = group(1.0)
    move = {"function": {"name": "move", "arguments": '{"direction": "up"}'}}
    for text, shown in (
        ("", 'move({"direction": "up"})'),
        ("Up.", 'Up.\nmove({"direction": "up"})'),
    ):
        called = replace(given.completions[0], text=text, tool_calls=(move,))
        (line,) = records([replace(given, completions=(called,))], [])
        assert line["completion"] == shown


def test_no_reward_at_all_has_no_mean() -> None:
    seen = metrics([group(None, None)], dropped=1)
    assert "rollout/reward/mean" not in seen
    assert seen["rollout/scorer_errors"] == 2
    assert seen["group/zero_variance_fraction"] == 0


def test_a_record_says_why_there_is_no_reward() -> None:
    record = records([group(1, None)], [])[1]
    assert record["reward"] is None
    assert record["scorer_errors"] == [
        {"reward": "taskset", "cause": "Timeout", "detail": "no score within 5 s"}
    ]


def test_the_log_has_an_entry_for_each_cause_of_a_task() -> None:
    one = group(1, None, None)
    assert told(one.task.id, one.scores) == [
        {
            "task": "t/0",
            "reward": "taskset",
            "cause": "Timeout",
            "count": 2,
            "detail": "no score within 5 s",
        }
    ]


@pytest.mark.parametrize(
    ("one", "remedy"),
    [
        (group(1, 1), "choose harder ones"),
        (group(1, 1, finish="length"), "choose harder ones"),
        (group(0, 0, finish="length"), "raise sampling.maxTokens, or set sampling.stopTokenIds"),
        (group(0, None), "The scorer fails"),
        (group(None, None), "The scorer fails"),
        (group(0, 0), "choose easier tasks"),
    ],
)
def test_rewards_without_signal_name_the_likely_remedy(one: Group, remedy: str) -> None:
    detail, named = uninformative([one], rounds=20)
    assert remedy in named
    assert "in 20 rounds every group" in detail


def test_of_declared_rewards_it_is_not_said_that_1_is_the_best() -> None:
    parts = {"right": 0.5, "style": 0.5}
    one = replace(group(1, 1), scores=(Scored(1.0, parts), Scored(1.0, parts)))
    assert "which of rewards is always the same" in uninformative([one], rounds=20)[1]


def test_completions_without_an_answer_are_counted_as_the_taskset_extracts() -> None:
    def told(mode: str) -> dict[str, float]:
        source = {"seed": 1, "configMap": {"name": "tasks"}, "answerExtraction": mode}
        return answered([group(0, 1)], Taskset.model_validate(source))

    # Both are "text n".
    assert told("AnswerTag") == {"completion/no_answer_fraction": 1.0}
    assert told("LastNumber") == {"completion/no_answer_fraction": 0.0}
    assert told("Whole") == {"completion/no_answer_fraction": 0.0}
    assert answered([], None) == {}
