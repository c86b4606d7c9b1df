"""Which rollouts of a step are kept, and what is taken out of them."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.api.run.rollout_log import RolloutLog
from espalier.client import Completion
from espalier.client.rollout import KEPT_TOKENS_MOST
from espalier.rewards.figures import TASKSET
from espalier.rewards.scored import Scored
from espalier.runner.rewards import Group
from espalier.runner.rollout_log import kept
from espalier.runner.run_end import UserError
from espalier.runner.task_protocol import Message, Task


def groups(count: int, text: str = "text", tokens: int = 2) -> list[Group]:
    return [
        Group(
            Task(f"t/{number}", (Message("user", f"{number}= for me@example.org"),)),
            tuple(
                Completion(text, (1,), tuple(range(tokens)), (-0.123456,) * tokens, "stop")
                for _ in range(2)
            ),
            (Scored(0.0, {TASKSET: 0.0}), Scored(1.0, {TASKSET: 1.0})),
        )
        for number in range(count)
    ]


def tasks(log: RolloutLog | None, step: int, count: int = 8) -> list[str]:
    sampled = groups(count)
    return [row["task"] for row in kept(log, sampled, sampled[:1], step).rollouts]


def test_without_a_log_all_are_kept_and_no_tokens() -> None:
    found = kept(None, groups(8), [], 1)
    assert len(found.rollouts) == 16
    assert found.keep_rollouts
    assert "token_ids" not in found.rollouts[0]


def test_whole_groups_are_drawn_by_the_number_of_the_step() -> None:
    log = RolloutLog(groups_per_step=3)
    first = tasks(log, 1)
    assert len(first) == 6
    assert first[::2] == first[1::2]
    # The same after a restart, others in another step, and always in the order of the step.
    assert tasks(log, 1) == first
    assert len({tuple(tasks(log, step)) for step in range(1, 20)}) > 5
    assert first == sorted(first)
    assert len(tasks(log, 1, count=2)) == 4


def test_steps_between_keep_none_and_the_trainer_makes_up_none() -> None:
    log = RolloutLog(every_steps=3)
    assert [bool(tasks(log, step)) for step in range(1, 7)] == [False, False, True] * 2
    assert kept(log, groups(1), [], 1).keep_rollouts is False
    assert kept(log, groups(1), [], 3).keep_rollouts is True


def test_a_record_still_tells_whether_its_group_was_trained_on() -> None:
    sampled = groups(2)
    rows = kept(RolloutLog(), sampled, sampled[1:], 1).rollouts
    assert [row["trained"] for row in rows] == [False, False, True, True]


def test_tokens_are_kept_where_the_run_says_so_and_not_without_end() -> None:
    log = RolloutLog(include_tokens="Sampled")
    row = kept(log, groups(1, tokens=3), [], 1).rollouts[0]
    assert row["token_ids"] == [0, 1, 2]
    assert row["logprobs"] == [-0.1235] * 3
    long = kept(log, groups(1, tokens=KEPT_TOKENS_MOST + 5), [], 1).rollouts[0]
    assert len(long["token_ids"]) == len(long["logprobs"]) == KEPT_TOKENS_MOST
    assert long["tokens"] == KEPT_TOKENS_MOST + 5


def redacted(text: str, *patterns: str) -> dict[str, Any]:
    log = RolloutLog(include_tokens="Sampled", redact_patterns=list(patterns))
    return kept(log, groups(1, text), [], 1).rollouts[0]


def test_what_a_pattern_matches_is_in_no_part_of_a_record() -> None:
    row = redacted("call +49 30 123", r"\+\d[\d ]+", r"[\w.]+@[\w.]+")
    assert row["completion"] == "call [redacted]"
    assert row["prompt"] == [{"role": "user", "content": "0= for [redacted]"}]
    # The tokens spell the same text.
    assert "token_ids" not in row
    assert row["tokens_left_out"] == "rolloutLog.redactPatterns"


def test_a_record_that_no_pattern_matches_keeps_its_tokens() -> None:
    row = redacted("plain", "secret")
    assert row["completion"] == "plain"
    assert row["token_ids"] == [0, 1]


def test_a_text_on_which_a_pattern_hangs_is_left_out_whole() -> None:
    row = redacted("a" * 5000 + "!", r"(a|aa)+$")
    assert "aaa" not in row["completion"]
    assert "took longer than" in row["completion"]
    assert "token_ids" not in row


def test_what_is_no_pattern_ends_the_run_with_its_name() -> None:
    with pytest.raises(UserError, match=r"redactPatterns has '\(a'") as raised:
        redacted("a", "(a")
    assert raised.value.problem.reason == "RolloutLogInvalid"
