"""Groups: what is dropped, what the trainer gets, what is recorded."""

from __future__ import annotations

from typing import Literal

import pytest

from espalier.api.run.group_filter import GroupFilter
from espalier.api.run.taskset import Taskset
from espalier.client import Completion
from espalier.runner.answers import answered
from espalier.runner.rewards import Group, kept, metrics, payloads, records, uninformative
from espalier.runner.run_end import UserError
from espalier.runner.scorer_spec import Failure
from espalier.runner.scoring.on_error import counted, settled, told
from espalier.runner.task_protocol import Message, Score, Task


def group(*rewards: float | None, finish: str = "stop", name: str = "t/0") -> Group:
    """One completion per reward, None for one whose scorer took too long; the n-th has n tokens."""
    completions = tuple(
        Completion(f"text {n}", (1, 2), tuple(range(n)), (-0.5,) * n, finish)
        for n, _ in enumerate(rewards, 1)
    )
    late = Failure.of("Timeout", "no score within 5 s")
    scores = tuple(Score(reward, late if reward is None else None) for reward in rewards)
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
def test_groups_with_a_cut_completion_go_whole_where_the_run_says_so(
    zero_variance: Literal["Keep", "Drop"],
) -> None:
    cut, whole = group(0, 1, finish="length"), group(0, 1, name="t/1")
    rules = GroupFilter(zero_variance=zero_variance, truncated="Drop")
    assert kept([cut, whole], rules) == [whole]
    assert kept([cut], rules) == []
    rules = GroupFilter(zero_variance=zero_variance)
    assert kept([cut, whole], rules) == [cut, whole]


def test_the_trainer_gets_whole_groups_in_a_row() -> None:
    inputs = payloads([group(0, 1), group(1, 0)])
    assert [one.reward for one in inputs] == [0, 1, 1, 0]
    assert [one.samples[0].output_token_ids for one in inputs] == [[0], [0, 1]] * 2
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
        "tokens": 2,
        "finish_reason": "stop",
        "trained": False,
    }
    assert [line["trained"] for line in lines] == [False, False, True, True]


def test_no_reward_at_all_has_no_mean() -> None:
    seen = metrics([group(None, None)], dropped=1)
    assert "rollout/reward/mean" not in seen
    assert seen["rollout/scorer_errors"] == 2
    assert seen["group/zero_variance_fraction"] == 0


def test_a_record_says_why_there_is_no_reward() -> None:
    record = records([group(1, None)], [])[1]
    assert record["reward"] is None
    assert record["scorer_error"] == {"cause": "Timeout", "detail": "no score within 5 s"}


def test_on_error_drop_group_leaves_the_scores_as_they_are() -> None:
    one = group(1, None)
    assert settled(one.task, one.scores, "DropGroup") == one.scores


def test_on_error_zero_pays_nothing_and_still_counts() -> None:
    one = group(1, None)
    paid = settled(one.task, one.scores, "Zero")
    assert [score.reward for score in paid] == [1, 0]
    assert counted(paid) == {"Timeout": 1}


def test_on_error_fail_names_task_cause_and_remedy() -> None:
    one = group(1, None, name="reasoning-gym/countdown/7")
    with pytest.raises(UserError) as raised:
        settled(one.task, one.scores, "Fail")
    problem = raised.value.problem
    assert problem.reason == "ScorerFailed"
    assert problem.detail == "task reasoning-gym/countdown/7: Timeout: no score within 5 s"
    assert "taskset.onError" in problem.remedy
    assert settled(one.task, one.scores[:1], "Fail") == one.scores[:1]


def test_the_log_has_an_entry_for_each_cause_of_a_task() -> None:
    one = group(1, None, None)
    assert told(one.task, one.scores) == [
        {"task": "t/0", "cause": "Timeout", "count": 2, "detail": "no score within 5 s"}
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


def test_completions_without_an_answer_are_counted_as_the_taskset_extracts() -> None:
    def told(mode: str) -> dict[str, float]:
        source = {"seed": 1, "configMap": {"name": "tasks"}, "answerExtraction": mode}
        return answered([group(0, 1)], Taskset.model_validate(source))

    # Both are "text n".
    assert told("AnswerTag") == {"completion/no_answer_fraction": 1.0}
    assert told("LastNumber") == {"completion/no_answer_fraction": 0.0}
    assert told("Whole") == {"completion/no_answer_fraction": 0.0}
    assert answered([], None) == {}
