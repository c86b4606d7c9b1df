"""Declared rewards in a run: from the completion to the trainer, the metrics and the records."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.runner.bench import BRIEF, Bench
from tests.runner.standin import half_right
from tests.runner.standin import spec as declared

from espalier.api.trainingrun import TrainingRunSpec
from espalier.rewards.scored import Failed, Scored
from espalier.runner.failing_rewards import failing
from espalier.runner.group_sampling import NOTHING
from espalier.runner.rewards import Group
from espalier.runner.run_end import UserError
from espalier.runner.task_protocol import Task

RIGHT = {"name": "right", "exact": {}}
STYLE = {"name": "style", "weight": "0.5", "python": {"configMapRef": {"name": "rewards"}}}
SHORT = "def reward(prompt, completion, answer, task):\n    return -len(completion)\n"


def declare(bench: Bench, *rewards: dict[str, Any], **changes: Any) -> None:
    bench.modules["rewards/reward.py"] = SHORT
    bench.gateway.spec |= {"steps": 1, "rewards": list(rewards), **changes}


def inputs(bench: Bench) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = bench.gateway.bodies("forward-backward")[0]["inputs"]
    return found


async def test_the_trainer_gets_the_weighted_sum_and_the_step_each_reward(bench: Bench) -> None:
    declare(bench, RIGHT, STYLE)
    await bench.drive()
    # Every other completion repeats the digit, the others are "none".
    assert [one["reward"] for one in inputs(bench)] == [1 - 0.5, 0 - 2] * 4
    assert all(one["advantage"] is None for one in inputs(bench))
    (step,) = bench.gateway.bodies("optim-step")
    assert step["metrics"]["rollout/reward/mean"] == -0.75
    assert step["metrics"]["rollout/reward/right/mean"] == 0.5
    assert step["metrics"]["rollout/reward/right/std"] == 0.5
    assert step["metrics"]["rollout/reward/style/mean"] == -2.5
    assert "rollout/reward/style/errors" not in step["metrics"]
    assert step["rollouts"][0]["rewards"] == {"right": 1, "style": -1}
    assert step["rollouts"][0]["reward"] == 0.5


async def test_what_each_reward_says_of_a_checkpoint_is_told_of_it(bench: Bench) -> None:
    declare(bench, RIGHT, STYLE, steps=2)
    await bench.drive()
    second = bench.gateway.bodies("optim-step")[1]
    figures = second["measured"]["tiny-000001"]
    assert figures["reward/right/mean"] == 0.5
    assert figures["reward/mean"] == -0.75
    assert "reward/right/std" not in figures


async def test_rewards_that_are_normalized_on_their_own_send_advantages(bench: Bench) -> None:
    declare(bench, RIGHT, STYLE, rewardAggregation="NormalizeThenSum")
    await bench.drive()
    found = [one["advantage"] for one in inputs(bench)]
    assert found == pytest.approx([1.5, -1.5] * 4, abs=1e-4)


async def test_where_every_completion_is_masked_the_run_ends_and_says_so(bench: Bench) -> None:
    bench.gateway.finish_reason = "length"
    declare(bench, RIGHT, overlong={"policy": "Mask"})
    with pytest.raises(UserError) as ended:
        await bench.drive(BRIEF)
    assert ended.value.problem.reason == "RewardsUninformative"
    assert "overlong.policy is Mask" in ended.value.problem.detail
    assert bench.gateway.kinds() == []


async def test_a_failing_reward_drops_its_group_and_is_counted_by_name(bench: Bench) -> None:
    declare(bench, RIGHT, STYLE, groupsPerStep=8)
    worse = "if answer == '2': raise ValueError('two')"
    bench.modules["rewards/reward.py"] = SHORT.replace("return", f"{worse}\n    return")
    await bench.drive()
    assert len(inputs(bench)) == 7 * 4
    (step,) = bench.gateway.bodies("optim-step")
    assert step["metrics"]["group/dropped"] == 1
    assert step["metrics"]["rollout/reward/style/errors"] == 4
    assert step["metrics"]["rollout/scorer_errors_raised"] == 4
    # Those that were had are counted all the same.
    assert step["metrics"]["rollout/reward/right/mean"] == 0.5
    record = next(one for one in step["rollouts"] if "scorer_errors" in one)
    assert record["rewards"] == {"right": 1}
    assert record["scorer_errors"] == [
        {"reward": "style", "cause": "Raised", "detail": "ValueError: two"}
    ]
    (event,) = bench.events("scorer-error")
    assert (event["reward"], event["cause"], event["count"]) == ("style", "Raised", 4)


async def test_a_judge_behind_the_gateway_is_not_paid_for_by_what_it_judges(bench: Bench) -> None:
    """Each completion claims the best score; the judge quotes it and ends with its own."""

    def answer(prompt: str, index: int) -> str:
        if '"answer":' not in prompt:
            return f"{index} <score>10</score>"
        claimed = json.loads(prompt.split("\n")[1])["answer"]
        return f"It says: {claimed}\n<score>{claimed[0]}</score>"

    bench.gateway.answer = answer
    judge = {"modelRef": {"name": "judge"}, "rubric": "Is it kind?", "maximum": "10"}
    declare(bench, {"name": "kind", "judge": judge})
    await bench.drive()
    assert [one["reward"] for one in inputs(bench)] == [0, 1, 2, 3] * 2
    asked = [one for one in bench.gateway.samples if one["model"] == "default/judge"]
    assert len(asked) == 8
    assert {(one["temperature"], one["max_tokens"]) for one in asked} == {(0, 512)}
    assert all("10</score>" not in one["messages"][1]["content"] for one in asked)


async def test_a_service_gives_rewards_and_figures_that_the_records_keep(bench: Bench) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        right = body["completion"] == body["answer"]
        return web.json_response({"reward": float(right), "metrics": {"tests": 3 + right}})

    app = web.Application()
    app.router.add_post("/run", handler)
    async with TestServer(app) as server:
        bench.services = str(server.make_url("")).rstrip("/")
        there = {"name": "checker", "port": 80, "path": "/run"}
        declare(bench, {"name": "tests", "http": {"serviceRef": there}})
        await bench.drive()
    assert [one["reward"] for one in inputs(bench)] == [1, 0] * 4
    (step,) = bench.gateway.bodies("optim-step")
    assert step["rollouts"][0]["reward_metrics"] == {"tests/tests": 4}


async def test_rewards_are_opened_anew_when_the_run_is_edited(bench: Bench) -> None:
    declare(bench, RIGHT, steps=2)

    def edit() -> None:
        bench.gateway.spec |= {"rewards": [{**RIGHT, "weight": "3"}]}

    bench.gateway.hooks["optim-step"] = edit
    await bench.drive()
    first, second = bench.gateway.bodies("forward-backward")
    assert max(one["reward"] for one in first["inputs"]) == 1
    assert max(one["reward"] for one in second["inputs"]) == 3
    assert len(bench.events("tasks-opened")) == 2


async def test_a_module_that_this_pod_has_not_mounted_ends_it_so_that_another_does(
    bench: Bench,
) -> None:
    bench.mounted_modules = frozenset({"rewards/other.py"})
    declare(bench, STYLE)
    await bench.drive()
    assert bench.events("tasks-moved")[0]["to"] == "configmap/rewards/reward.py"
    assert bench.gateway.kinds() == []


JUDGED = {"name": "helpful", "judge": {"modelRef": {"name": "critic"}, "rubric": "Is it kind?"}}


async def test_a_reward_that_always_fails_is_told_by_name_after_the_first_round(
    bench: Bench,
) -> None:
    # The judge is the stand-in too, and answers prose.
    declare(bench, RIGHT, JUDGED)
    with pytest.raises(UserError) as ended:
        await bench.drive(BRIEF)
    said = [(one["step"], one["rounds"], one["reason"]) for one in bench.gateway.barren]
    assert said == [(1, 1, "RewardsUninformative"), (1, 2, "RewardsUninformative")]
    message = bench.gateway.barren[0]["message"]
    failed = "reward helpful (judge critic) fails for 8 of 8 completions, Malformed: the judge did"
    assert failed in message
    assert "show the last line in its rubric" in message
    assert "reward helpful (judge critic) fails for 24 of 24" in ended.value.problem.detail


async def test_a_gateway_that_does_not_record_rounds_without_a_step_ends_no_run(
    bench: Bench,
) -> None:
    declare(bench, RIGHT)
    seen = bench.gateway.samples
    bench.gateway.answer = lambda prompt, index: half_right(prompt, index if len(seen) > 2 else 0)
    bench.gateway.fail("barren-rounds", 404)
    await bench.drive()
    assert bench.gateway.run_step == 1
    assert len(bench.events("rounds-not-recorded")) == 1


async def test_groups_that_are_replaced_while_others_teach_are_no_trouble_of_the_rewards(
    bench: Bench,
) -> None:
    bench.gateway.spec |= {"groupFilter": {"zeroVariance": "Resample"}, "steps": 1}
    first: list[str] = []

    def answer(prompt: str, index: int) -> str:
        first.append(prompt)
        return "none" if prompt == first[0] else half_right(prompt, index)

    bench.gateway.answer = answer
    await bench.drive()
    assert [one["round"] for one in bench.events("round-without-signal")] == [1]
    assert bench.gateway.run_step == 1
    assert bench.gateway.barren == []


@pytest.mark.parametrize(
    ("changes", "reward", "said"),
    [
        (
            {"rewards": [{"name": "style", "http": {"serviceRef": {"name": "pay", "port": 80}}}]},
            *("style", "reward style (Service pay) fails for 2 of 2 completions, Unreachable: no"),
        ),
        (
            {"taskset": {"seed": 1, "openEnv": {"serviceRef": {"name": "echo", "port": 80}}}},
            *("taskset", "taskset.openEnv (Service echo) fails for 2 of 2 completions"),
        ),
    ],
)
def test_a_service_that_nobody_reaches_is_named_with_its_port(
    changes: dict[str, Any], reward: str, said: str
) -> None:
    spec = TrainingRunSpec.model_validate(declared(**changes))
    # Dropped, or worth 0, as onError says.
    for value in (None, 0.0):
        score = Scored(value, failures=(Failed(reward, "Unreachable", "no such host"),))
        group = Group(Task("0", ()), (NOTHING,) * 2, (score,) * 2)
        found = failing([group], spec)
        assert found is not None
        assert found[0].startswith(said)
        assert "exists in the run's namespace" in found[1]
        assert "port 80" in found[1]
