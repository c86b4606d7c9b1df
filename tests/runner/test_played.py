"""Declared runs of environments through the loop: what is sampled, trained on, counted, refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from tests.runner.bench import BRIEF, Bench, series
from tests.runner.standin import StandIn

from espalier.client.errors import TOO_LONG
from espalier.environments.board_2048 import DIRECTIONS
from espalier.runner.open_taskset import open_taskset
from espalier.runner.run_end import UserError

GAME = {"seed": 1, "size": 8, "game2048": {"maxTurns": 4, "target": 16}}


def moves(prompt: str, index: int) -> str:
    """A move that follows the board, so that rollouts with other tiles go other ways."""
    return DIRECTIONS[sum(prompt.encode()) % 4]


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    gateway = StandIn(taskset=GAME, steps=2)
    gateway.answer = moves
    async with TestServer(gateway.app()) as running:
        made = Bench(gateway, str(running.make_url("/")), tmp_path)
        monkeypatch.setattr(made, "_open", lambda spec: open_taskset(spec, tmp_path))
        yield made


async def test_a_declared_game_is_played_over_several_turns_and_trained_on(bench: Bench) -> None:
    before = series()
    await bench.drive()
    assert bench.gateway.kinds() == ["forward-backward", "optim-step"] * 2
    played = sum(len(step["rollouts"]) for step in bench.gateway.bodies("optim-step"))
    assert series()["rollouts"] - before["rollouts"] == played
    assert series()["in flight"] == 0
    first = bench.gateway.bodies("forward-backward")[0]
    assert first["group_size"] == 4
    turns = {len(one["samples"]) for one in first["inputs"]}
    assert max(turns) > 1
    rewards = [one["reward"] for one in first["inputs"]]
    assert len(set(rewards)) > 1
    step = bench.gateway.bodies("optim-step")[0]
    assert {record["turns"] for record in step["rollouts"]} >= turns


async def test_only_what_the_model_wrote_is_trained_on(bench: Bench) -> None:
    await bench.drive()
    for body in bench.gateway.bodies("forward-backward"):
        for one in body["inputs"]:
            for sample in one["samples"]:
                # Each output is a word of the model with its end; boards are in prompts alone.
                word = bytes(sample["output_token_ids"][:-1]).decode()
                assert word in DIRECTIONS
                assert len(sample["output_logprobs"]) == len(sample["output_token_ids"])


async def test_each_turn_goes_on_from_the_tokens_of_the_turn_before(bench: Bench) -> None:
    bench.gateway.spec |= {"groupSize": 2, "groupsPerStep": 1, "steps": 1}
    with contextlib.suppress(UserError):
        await bench.drive(BRIEF)
    later = [sample for sample in bench.gateway.samples if "continuation_from" in sample]
    assert later
    for sample in later:
        assert sample["continuation_from"] % 2 == 0
        assert sample["prompt_token_ids"]


async def test_a_run_says_how_every_turn_is_sampled(bench: Bench) -> None:
    bench.gateway.spec["sampling"] |= {"stopTokenIds": [7], "chatTemplateKwargs": {"a": 1}}
    await bench.drive()
    for sample in bench.gateway.samples:
        assert (sample["max_tokens"], sample["temperature"]) == (4, 1.0)
        assert (sample["stop_token_ids"], sample["chat_template_kwargs"]) == ([7], {"a": 1})


async def test_a_game_whose_rules_do_not_fit_is_skipped_and_counted(bench: Bench) -> None:
    bench.gateway.context = 10
    with pytest.raises(UserError) as caught:
        await bench.drive(BRIEF)
    assert caught.value.problem.reason == "PromptTooLong"
    assert TOO_LONG in bench.events("prompt-too-long")[0]["detail"]


async def test_a_rollout_that_fails_drops_its_group_and_is_counted_by_cause(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.gateway.spec["taskset"] = {
        **GAME,
        "game2048": {**GAME["game2048"], "timeoutSeconds": 1},  # type: ignore[dict-item]
    }
    bench.gateway.spec["steps"] = 1
    monkeypatch.setattr("espalier.environments.game_2048.Game2048Environment.timeout_seconds", 1e-6)
    with pytest.raises(UserError) as caught:
        await bench.drive(BRIEF)
    assert caught.value.problem.reason == "RewardsUninformative"
    error = bench.events("scorer-error")[0]
    assert (error["cause"], error["count"]) == ("Timeout", 4)


async def test_tasks_that_change_under_a_run_end_it_by_name(bench: Bench, tmp_path: Path) -> None:
    def write(answers: str) -> None:
        rows = [json.dumps({"prompt": f"{d}=", "answer": str(d)}) for d in answers]
        (tmp_path / "tasks.jsonl").write_text("\n".join(rows))

    digits: dict[str, Any] = {"seed": 1, "size": 8, "configMap": {"name": "digits"}}
    bench.gateway.spec |= {"taskset": {**digits, "answerExtraction": "LastNumber"}, "steps": 1}
    bench.gateway.answer = lambda prompt, index: prompt[0] if index % 2 else "none"
    write("01234567")
    await bench.drive()
    bench.gateway.spec["steps"] = 2
    write("01234568")
    with pytest.raises(UserError) as caught:
        await bench.drive()
    assert caught.value.problem.reason == "TasksetChanged"
    assert bench.events("taskset-changed")
    # With its text back the run goes on; so it does when the taskset is declared anew.
    write("01234567")
    await bench.drive()
    write("01234568")
    bench.gateway.spec |= {"steps": 3}
    bench.gateway.spec["taskset"]["seed"] = 2
    await bench.drive()
    assert bench.gateway.run_step == 3


async def test_checkpoints_play_held_out_games_that_the_run_does_not_train_on(bench: Bench) -> None:
    held_out = {
        "name": "games",
        "taskset": {**GAME, "seed": 2, "size": 3},
        "at": ["Start", "End"],
        "groupSize": 2,
        "temperature": "0.5",
        "passAtK": [2],
    }
    bench.gateway.spec |= {"evaluation": [held_out]}
    await bench.drive()
    assert sorted(bench.gateway.evaluations) == [("run", "games"), ("tiny-000002", "games")]
    found = bench.gateway.evaluations["tiny-000002", "games"]
    assert found["tasks"] == 3
    assert 0 < found["metrics"]["mean_reward"] <= 1
    assert found["metrics"]["pass@2"] <= 1
    first = {
        (sample["temperature"], sample["messages"][0]["content"])
        for sample in bench.gateway.samples
    }
    trained, asked = ({text for t, text in first if t == heat} for heat in (1.0, 0.5))
    assert len(asked) == 3
    assert trained.isdisjoint(asked)


async def test_a_run_on_answers_may_be_evaluated_by_games(bench: Bench, tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"{d}=", "answer": str(d)}) for d in range(8)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(rows))
    bench.gateway.answer = lambda prompt, index: (
        moves(prompt, index) if "2048" in prompt else prompt[0] if index % 2 else "none"
    )
    digits = {"seed": 1, "size": 8, "configMap": {"name": "digits"}}
    bench.gateway.spec |= {
        "steps": 1,
        "taskset": {**digits, "answerExtraction": "LastNumber"},
        "rewards": [{"name": "right", "exact": {}}],
        "lengthPenalty": {"coefficient": "0.1", "targetTokens": 1},
        "evaluation": [{"name": "games", "taskset": {**GAME, "size": 2}}],
    }
    await bench.drive()
    assert bench.gateway.evaluations["tiny-000001", "games"]["tasks"] == 2
