"""Held-out tasks in the course of a run, and the rollouts that a step keeps."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.runner.bench import BRIEF, Bench, held_out
from tests.runner.standin import StandIn

from espalier.runner.run_end import UserError


def _half_held_out(gateway: StandIn, **changes: Any) -> None:
    """The run trains on four of the eight digits, the others are held out."""
    gateway.ends = True
    taskset = {**gateway.spec["taskset"], "size": 4}
    gateway.spec |= {"taskset": taskset, "evaluation": [held_out(**changes)]}


async def test_checkpoints_are_asked_held_out_tasks_and_the_last_is_asked_before_the_end(
    bench: Bench,
) -> None:
    _half_held_out(bench.gateway, everySteps=2)
    await bench.drive()
    assert sorted(bench.gateway.evaluations) == [
        ("tiny-000002", "held-out"),
        ("tiny-000003", "held-out"),
    ]
    found = bench.gateway.evaluations["tiny-000003", "held-out"]
    assert found["tasks"] == 4
    assert found["metrics"]["mean_reward"] == 1.0
    asked = [s for s in bench.gateway.samples if s["temperature"] == 0.0]
    assert {sample["model"].partition("@")[2] for sample in asked} == {"tiny-000002", "tiny-000003"}
    trained = {s["messages"][-1]["content"] for s in bench.gateway.samples if s["temperature"]}
    assert len(trained) == 4
    assert trained.isdisjoint(s["messages"][-1]["content"] for s in asked)


async def test_a_run_that_is_over_ends_its_runner_though_the_next_one_has_the_trainer(
    bench: Bench,
) -> None:
    _half_held_out(bench.gateway, at=["End"])
    bench.gateway.then = "NotOwnRun"
    asked = bench.gateway.greedy_waits_for = asyncio.Event()
    # The last evaluation takes longer than any wait for the operator, and fails once.
    bench.gateway.fail("evaluation", 403)
    driving = asyncio.ensure_future(bench.drive(BRIEF))
    await asyncio.sleep(4 * BRIEF.settle_seconds)
    assert not driving.done()
    asked.set()
    await driving
    assert [name for name, _ in bench.gateway.evaluations] == ["tiny-000003"]
    assert [wait["reason"] for wait in bench.events("waiting")] == ["Status403"]
    assert [one["over"] for one in bench.events("finished")] == [True]


async def test_the_base_is_asked_at_the_start_and_the_run_keeps_its_figures(bench: Bench) -> None:
    _half_held_out(bench.gateway, at=["Start"])
    await bench.drive()
    # The base has no checkpoint to record it with.
    (recorded,) = bench.gateway.evaluations.items()
    assert recorded[0] == ("run", "held-out")
    assert (recorded[1]["tasks"], recorded[1]["metrics"]["mean_reward"]) == (4, 1.0)
    (event,) = bench.events("evaluated")
    assert (event["checkpoint"], event["step"]) == ("base", 0)
    assert event["metrics"]["pass@1"] == 1.0


async def test_pass_at_k_is_of_sampled_answers(bench: Bench) -> None:
    _half_held_out(bench.gateway, groupSize=4, temperature="0.7", passAtK=[1, 2])
    await bench.drive()
    metrics = bench.gateway.evaluations["tiny-000003", "held-out"]["metrics"]
    # Two of four answers are right: 1 - C(2, 2) / C(4, 2).
    assert metrics["pass@1"] == 0.5
    assert metrics["pass@2"] == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    "limits", [{"maxPromptTokens": 10}, {"maxPromptTokens": 10, "promptPolicy": "Fail"}, {}]
)
async def test_a_held_out_prompt_beyond_the_limits_is_left_out_or_ends_the_run_by_name(
    bench: Bench, tmp_path: Path, limits: dict[str, Any]
) -> None:
    rows = [json.dumps({"prompt": f"{n}=", "answer": str(n)}) for n in range(8)]
    rows[6] = json.dumps({"id": "long", "prompt": "6=" + "?" * 20, "answer": "6"})
    (tmp_path / "tasks.jsonl").write_text("\n".join(rows))
    _half_held_out(bench.gateway, at=["Start"])
    bench.gateway.spec["limits"] = limits
    if not limits:
        # The context is a limit as well.
        bench.gateway.context = 10
    if "promptPolicy" in limits:
        with pytest.raises(UserError, match="the prompt of task long is too long") as raised:
            await bench.drive()
        assert raised.value.problem.reason == "PromptTooLong"
        return
    await bench.drive()
    (event,) = bench.events("evaluated")
    assert (event["tasks"], event["prompts_too_long"]) == (3, 1)
    assert bench.gateway.evaluations["run", "held-out"]["tasks"] == 3


async def test_training_goes_on_while_an_evaluation_is_slow(bench: Bench) -> None:
    _half_held_out(bench.gateway, everySteps=1)
    committed = asyncio.Event()
    bench.gateway.greedy_waits_for = committed
    # Set by the third step, which no evaluation before it holds up.
    bench.gateway.committed[3] = committed
    await bench.drive()
    assert len(bench.gateway.evaluations) == 3


async def test_an_evaluation_that_may_not_be_recorded_is_a_wait_and_is_begun_again(
    bench: Bench,
) -> None:
    _half_held_out(bench.gateway, at=["End"])
    bench.gateway.ends = False
    bench.gateway.fail("evaluation", 403)
    await bench.drive()
    assert [wait["reason"] for wait in bench.events("waiting")] == ["Status403"]
    assert [name for name, _ in bench.gateway.evaluations] == ["tiny-000003"]


async def test_held_out_tasks_that_are_missing_in_mid_run_end_it_at_the_next_step(
    bench: Bench,
) -> None:
    _half_held_out(bench.gateway, everySteps=1)
    bench.gateway.spec["steps"] = 50
    bench.gateway.spec["evaluation"][0]["taskset"]["size"] = 5
    with pytest.raises(UserError, match="only 4 of 5 tasks differ"):
        await bench.drive()
    assert bench.gateway.run_step < 50


async def test_held_out_tasks_that_are_not_enough_end_the_run_with_the_remedy(
    bench: Bench,
) -> None:
    _half_held_out(bench.gateway)
    bench.gateway.spec["evaluation"][0]["taskset"]["size"] = 5
    with pytest.raises(UserError) as raised:
        await bench.drive()
    assert raised.value.problem.reason == "TasksetInvalid"
    assert "only 4 of 5 tasks differ" in raised.value.problem.detail


async def test_a_step_keeps_the_rollouts_that_the_run_asks_for(bench: Bench) -> None:
    log = {"groupsPerStep": 1, "everySteps": 2, "includeTokens": "Sampled"}
    bench.gateway.spec |= {"rolloutLog": log}
    await bench.drive()
    first, second, third = bench.gateway.bodies("optim-step")
    assert [len(step["rollouts"]) for step in (first, second, third)] == [0, 4, 0]
    assert [step["keep_rollouts"] for step in (first, second, third)] == [False, True, False]
    row = second["rollouts"][0]
    assert len(row["token_ids"]) == len(row["logprobs"]) == row["tokens"]
