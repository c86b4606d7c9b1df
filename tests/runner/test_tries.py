"""Rollouts that fail or take too long: tried again, counted, and the end of a run by name."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from tests.runner.bench import BRIEF, Bench, held_out
from tests.runner.standin import StandIn
from tests.runner.test_played import GAME, moves

from espalier.environments.errors import RolloutFailedError
from espalier.environments.game_2048 import Game2048Environment
from espalier.runner.open_taskset import open_taskset
from espalier.runner.run_end import UserError, WaitError

LONG = 60.0


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    rows = [json.dumps({"prompt": f"{digit}=", "answer": str(digit)}) for digit in range(8)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(rows))
    gateway = StandIn(steps=1)
    async with TestServer(gateway.app()) as running:
        yield Bench(gateway, str(running.make_url("/")), tmp_path)


@pytest.fixture
def game(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The same gateway with games of several turns."""
    bench.gateway.spec |= {"taskset": GAME}
    bench.gateway.answer = moves
    monkeypatch.setattr(bench, "_open", lambda spec: open_taskset(spec, bench.folder))
    return bench


def slow(bench: Bench, route: str, *seconds: float) -> None:
    bench.gateway.seconds[route] = deque(seconds)


def figures(bench: Bench) -> dict[str, float]:
    metrics: dict[str, float] = bench.gateway.bodies("optim-step")[-1]["metrics"]
    return metrics


async def test_a_request_that_takes_too_long_is_asked_again(bench: Bench) -> None:
    bench.gateway.spec |= {"timeouts": {"sampleSeconds": 2}, "rolloutErrors": {}, "seed": 5}
    slow(bench, "chat", LONG)
    await bench.drive()
    assert len(bench.gateway.samples) == 3
    assert figures(bench)["rollout/retries"] == 1
    assert figures(bench)["rollout/scorer_errors"] == 0
    # The try is another sample, not the same again.
    assert len({sample["seed"] for sample in bench.gateway.samples}) == 3


def failing(game: Bench, monkeypatch: pytest.MonkeyPatch, *failures: bool) -> None:
    """Rollouts of one turn fail one after another as told, and then no more."""
    told = iter(failures)

    async def plays(self: Any, task: Any, session: Any) -> float:
        await session.say("move")
        if next(told, False):
            raise RolloutFailedError("Died", "the game was lost")
        return float(session.rollout.rollout_idx % 2)

    monkeypatch.setattr(Game2048Environment, "rollout", plays)


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        (None, ""),
        ({"maxErrorPercent": 25}, ""),
        ({}, "2 of 8 rollouts for step 1 failed, and rolloutErrors.maxErrorPercent is 20"),
        (
            {"maxErrorPercent": 100, "maxErrors": 1},
            "2 rollouts of the run failed by step 1, and rolloutErrors.maxErrors is 1",
        ),
    ],
    ids=str,
)
async def test_a_run_ends_once_more_rollouts_fail_than_it_bears(
    game: Bench, monkeypatch: pytest.MonkeyPatch, errors: dict[str, Any] | None, said: str
) -> None:
    if errors is not None:
        game.gateway.spec |= {"rolloutErrors": {"maxRetries": 0, **errors}}
    failing(game, monkeypatch, True, True)
    if not said:
        await game.drive()
        assert figures(game)["rollout/scorer_errors_died"] == 2
        assert len(game.gateway.bodies("forward-backward")[0]["inputs"]) == 4
        return
    with pytest.raises(UserError) as caught:
        await game.drive()
    problem = caught.value.problem
    assert problem.reason == "ErrorBudgetExceeded"
    assert problem.detail == f"{said}; the first: Died: the game was lost"
    assert "optim-step" not in game.gateway.kinds()


async def test_failures_are_counted_over_the_run_and_its_restarts(
    game: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = {"maxRetries": 0, "maxErrorPercent": 100, "maxErrors": 3}
    game.gateway.spec |= {"rolloutErrors": rules}
    failing(game, monkeypatch, True, True)
    await game.drive()
    game.gateway.spec |= {"steps": 2}
    failing(game, monkeypatch, True, True)
    with pytest.raises(UserError, match="4 rollouts of the run failed by step 2"):
        await game.drive()


async def test_an_environments_rollout_that_fails_is_played_again_from_its_beginning(
    game: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    game.gateway.spec |= {"rolloutErrors": {"maxRetries": 1}, "seed": 5}
    played, failures = Game2048Environment.rollout, iter([True, False, True])

    async def sometimes(self: Any, task: Any, session: Any) -> float:
        reward = await played(self, task, session)
        if next(failures, False):
            raise RolloutFailedError("Died", "the game was lost")
        return reward

    monkeypatch.setattr(Game2048Environment, "rollout", sometimes)
    await game.drive()
    assert figures(game)["rollout/retries"] == 2
    assert figures(game)["rollout/scorer_errors"] == 0
    # No two requests of a run have one seed: not tries, not turns, not rollouts.
    seeds = [sample["seed"] for sample in game.gateway.samples]
    assert len(set(seeds)) == len(seeds)


async def test_rollouts_that_are_not_over_in_their_groups_time_have_failed(game: Bench) -> None:
    game.gateway.spec |= {"timeouts": {"groupSeconds": 2}}
    slow(game, "chat", *[0.0] * 5, LONG)
    await game.drive()
    assert figures(game)["rollout/scorer_errors_timeout"] == 1
    assert len(game.gateway.bodies("forward-backward")[0]["inputs"]) == 4
    (error,) = game.events("scorer-error")
    assert "longer than 2 s (timeouts.groupSeconds)" in error["detail"]


async def test_a_group_is_trained_on_without_what_failed_if_enough_of_it_is_left(
    game: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(game, monkeypatch, True)
    errors = {"maxRetries": 0, "maxErrorPercent": 50, "minGroupSize": 3}
    game.gateway.spec |= {"rolloutErrors": errors}
    await game.drive()
    (gradients,) = game.gateway.bodies("forward-backward")
    # Seven of eight, each with the group that its reward is compared in.
    sizes = Counter(one["group_id"] for one in gradients["inputs"])
    assert sorted(sizes.values()) == [3, 4]
    assert gradients["group_size"] is None
    trained = [row["trained"] for row in game.gateway.bodies("optim-step")[0]["rollouts"]]
    assert Counter(trained) == {True: 7, False: 1}


@pytest.mark.parametrize(
    ("field", "route", "reason", "said"),
    [
        ("trainSeconds", "optim-step", "TrainTimeout", "optim-step took longer than 2 s"),
        ("stepSeconds", "chat", "StepTimeout", "2 s (timeouts.stepSeconds), and was sampling"),
        ("stepSeconds", "forward-backward", "StepTimeout", "and was adding gradients"),
    ],
)
async def test_a_wait_that_takes_too_long_ends_the_run_by_its_name(
    game: Bench, field: str, route: str, reason: str, said: str
) -> None:
    game.gateway.spec |= {"timeouts": {field: 2}}
    slow(game, route, LONG)
    with pytest.raises(UserError, match=said.replace("(", r"\(").replace(")", r"\)")) as caught:
        await game.drive(BRIEF)
    assert caught.value.problem.reason == reason
    assert f"spec.timeouts.{field}" in caught.value.problem.remedy


async def test_an_evaluation_that_is_not_answered_in_time_is_begun_again(bench: Bench) -> None:
    taskset = {**bench.gateway.spec["taskset"], "size": 4}
    changes = {"timeouts": {"sampleSeconds": 2}, "taskset": taskset, "evaluation": [held_out()]}
    bench.gateway.spec |= changes
    slow(bench, "chat", 0.0, 0.0, LONG)
    with pytest.raises(WaitError) as caught:
        await bench.drive()
    assert caught.value.problem.reason == "SampleTimeout"
    await bench.drive()
    assert ("tiny-000001", "held-out") in bench.gateway.evaluations


async def test_rewards_within_the_tolerance_are_equal(bench: Bench) -> None:
    bench.gateway.spec |= {"groupFilter": {"tolerance": "1"}}
    with pytest.raises(UserError) as caught:
        await bench.drive(BRIEF)
    assert caught.value.problem.reason == "RewardsUninformative"
    seen = bench.events("round-without-signal")[0]["metrics"]
    assert seen["group/zero_variance_fraction"] == 1
    bench.gateway.spec |= {"groupFilter": {"tolerance": "0.99"}}
    await bench.drive()


async def test_two_runs_with_one_seed_ask_with_the_same_seeds_also_after_a_restart(
    bench: Bench,
) -> None:
    async def asked(seed: int, *, steps: int) -> list[tuple[str, int]]:
        bench.gateway.spec |= {"seed": seed, "steps": steps}
        before = len(bench.gateway.samples)
        await bench.drive()
        # Groups are asked all at once, in any order.
        new = bench.gateway.samples[before:]
        return sorted((one["messages"][-1]["content"], one["seed"]) for one in new)

    def begin_again() -> None:
        bench.gateway.step = bench.gateway.run_step = 0
        bench.gateway.checkpoint, bench.gateway.cursor = "", {}

    whole = await asked(5, steps=4)
    begin_again()
    parts = [*await asked(5, steps=1), *await asked(5, steps=4)]
    assert sorted(parts) == whole
    begin_again()
    other = await asked(6, steps=4)
    assert [task for task, _ in other] == [task for task, _ in whole]
    assert not {seed for _, seed in other} & {seed for _, seed in whole}
