"""Asynchronous and streaming runs, and groups that are sampled again."""

from __future__ import annotations

from typing import Any

from aiohttp.test_utils import TestServer
from tests.runner.bench import Bench
from tests.runner.standin import StandIn


def _streams(commands: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    return [body["inputs"] if kind == "forward-backward" else kind for kind, body in commands]


async def test_asynchronous_without_staleness_sends_what_synchronous_sends(bench: Bench) -> None:
    await bench.drive()
    synchronous = list(bench.gateway.commands)
    other = StandIn(schedule={"mode": "Asynchronous", "maxStalenessSteps": 0})
    async with TestServer(other.app()) as running:
        again = Bench(other, str(running.make_url("/")), bench.folder)
        await again.drive()
    assert _streams(other.commands) == _streams(synchronous)
    rollouts = [body["rollouts"] for kind, body in other.commands if kind == "optim-step"]
    assert rollouts == [body["rollouts"] for kind, body in synchronous if kind == "optim-step"]


async def test_an_asynchronous_run_trains_groups_of_the_step_before_and_says_how_old_they_are(
    bench: Bench,
) -> None:
    schedule = {"mode": "Asynchronous", "maxStalenessSteps": 1}
    bench.gateway.spec |= {"steps": 4, "schedule": schedule}
    await bench.drive()
    ages = [
        (
            body["metrics"]["async/staleness_steps/mean"],
            body["metrics"]["async/staleness_steps/max"],
        )
        for body in bench.gateway.bodies("optim-step")
    ]
    assert ages == [(0, 0), (1, 1), (1, 1), (1, 1)]
    # Rewards are figures of the checkpoint that was sampled, not of the one that was trained.
    assert [sorted(body["measured"]) for body in bench.gateway.bodies("optim-step")] == [
        [],
        [],
        ["tiny-000001"],
        ["tiny-000002"],
    ]


async def test_a_streaming_run_adds_gradients_of_each_minibatch(bench: Bench) -> None:
    bench.gateway.spec |= {"steps": 2, "schedule": {"mode": "Streaming", "minibatches": 2}}
    await bench.drive()
    assert bench.gateway.kinds() == ["forward-backward", "forward-backward", "optim-step"] * 2
    assert all(record["trained"] for record in bench.gateway.bodies("optim-step")[0]["rollouts"])


async def test_groups_of_equal_rewards_are_replaced_where_the_run_resamples(bench: Bench) -> None:
    bench.gateway.spec |= {"steps": 1, "groupFilter": {"zeroVariance": "Resample"}}
    first: list[str] = []
    bench.gateway.answer = lambda prompt, index: (
        prompt if index and prompt not in (first or first.append(prompt) or first) else "none"
    )
    await bench.drive()
    assert len(bench.asked()) == 3
    assert len(set(bench.asked())) == 3
    assert len(bench.gateway.bodies("forward-backward")[0]["inputs"]) == 8


async def test_resampling_has_a_bound_and_then_trains_on_what_there_is(bench: Bench) -> None:
    rules = {"zeroVariance": "Resample", "maxResampleRounds": 2}
    bench.gateway.spec |= {"steps": 1, "groupFilter": rules}
    first: list[str] = []
    bench.gateway.answer = lambda prompt, index: (
        prompt if index and prompt in (first or first.append(prompt) or first) else "none"
    )
    await bench.drive()
    assert len(bench.asked()) == 4
    assert len(bench.gateway.bodies("forward-backward")[0]["inputs"]) == 4


async def test_a_step_waits_for_the_fewest_groups_that_the_run_wants(bench: Bench) -> None:
    bench.gateway.spec |= {"steps": 1, "groupFilter": {"minGroups": 2}}
    calls = iter(range(100))
    bench.gateway.answer = lambda prompt, index: prompt if next(calls) >= 4 and index else "none"
    await bench.drive()
    assert len(bench.asked()) == 4
    assert len(bench.gateway.bodies("forward-backward")[0]["inputs"]) == 8
