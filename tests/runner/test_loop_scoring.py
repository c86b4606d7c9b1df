"""Answers that cannot be scored, and what confines those who score."""

from __future__ import annotations

import sys

import pytest
from tests.runner.bench import BRIEF, Bench

from espalier.runner.run_end import UserError
from espalier.runner.scoring import landlock, seccomp

EXECUTING = (sys.executable, "-P", "-m", "tests.runner.hostile", "alone", "all")
HANGING = "while True: pass"


def _one_answer_hangs(prompt: str, index: int) -> str:
    """Every task's first answer is right, but for one that never ends."""
    if prompt == "2=" and not index:
        return HANGING
    return f"reward = {float(not index)}"


def _scored(bench: Bench, policy: str, **changes: object) -> None:
    bench.worker = EXECUTING
    taskset = {**bench.gateway.spec["taskset"], "onError": policy, "scoreTimeoutSeconds": 2}
    bench.gateway.spec |= {"taskset": taskset, "steps": 1, "groupsPerStep": 8, **changes}
    bench.gateway.answer = _one_answer_hangs


@pytest.mark.parametrize("zero_variance", ["Keep", "Drop"])
async def test_a_group_with_an_answer_that_cannot_be_scored_is_dropped_and_named(
    bench: Bench, zero_variance: str
) -> None:
    _scored(bench, "DropGroup", groupFilter={"zeroVariance": zero_variance})
    await bench.drive()
    (gradients,) = bench.gateway.bodies("forward-backward")
    assert [one["reward"] for one in gradients["inputs"]] == [1, 0, 0, 0] * 7
    (step,) = bench.gateway.bodies("optim-step")
    assert step["metrics"]["group/dropped"] == 1
    assert step["metrics"]["rollout/scorer_errors"] == 1
    assert step["metrics"]["rollout/scorer_errors_timeout"] == 1
    assert step["metrics"]["rollout/reward/mean"] == pytest.approx(7 / 31)
    (error,) = bench.events("scorer-error")
    assert error["task"] == "configmap/digits/tasks.jsonl/2"
    assert (error["cause"], error["count"]) == ("Timeout", 1)


async def test_on_error_zero_trains_on_it_as_on_a_wrong_answer(bench: Bench) -> None:
    _scored(bench, "Zero", groupFilter={"zeroVariance": "Keep"})
    await bench.drive()
    (gradients,) = bench.gateway.bodies("forward-backward")
    assert sorted(one["reward"] for one in gradients["inputs"]) == [0] * 25 + [1] * 7
    (step,) = bench.gateway.bodies("optim-step")
    assert step["metrics"]["rollout/scorer_errors_timeout"] == 1
    assert step["metrics"]["rollout/reward/mean"] == 7 / 32


async def test_on_error_fail_ends_the_run_and_names_the_task(bench: Bench) -> None:
    _scored(bench, "Fail")
    with pytest.raises(UserError) as raised:
        await bench.drive()
    assert raised.value.problem.reason == "ScorerFailed"
    assert "task configmap/digits/tasks.jsonl/2: Timeout" in raised.value.problem.detail
    assert bench.gateway.kinds() == []


async def test_when_every_group_is_dropped_the_run_ends_and_says_why(bench: Bench) -> None:
    _scored(bench, "DropGroup")
    bench.gateway.answer = lambda prompt, index: "exit()" if not index else "reward = 1.0"
    with pytest.raises(UserError) as raised:
        await bench.drive(BRIEF)
    assert raised.value.problem.reason == "RewardsUninformative"
    assert "24 of 24 groups dropped for scorer errors" in raised.value.problem.detail
    assert "onError, of the taskset" in raised.value.problem.remedy
    assert len(bench.events("round-without-signal")) == 2


async def test_what_confines_the_scorers_is_on_record(bench: Bench) -> None:
    await bench.drive()
    (opened,) = bench.events("tasks-opened")
    assert opened["size"] == 8
    assert opened["seccomp"] is seccomp.supported()
    assert opened["landlock"] == landlock.version()
