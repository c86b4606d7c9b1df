"""ask and evaluate against a gateway over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from tests.runner.standin import StandIn
from typer.testing import CliRunner, Result

from espalier.cli.main import app

Command = Callable[..., Awaitable[Result]]
SUMS = {
    "dataset": "basic_arithmetic",
    "config": {
        "min_terms": 2,
        "max_terms": 2,
        "min_digits": 1,
        "max_digits": 1,
        "operators": ["+"],
        "allow_parentheses": False,
        "allow_negation": False,
    },
}


@pytest.fixture
def gateway() -> StandIn:
    stand_in = StandIn()
    stand_in.spec["taskset"] = {
        "seed": 1,
        "size": 20,
        "reasoningGym": SUMS,
        "answerExtraction": "LastNumber",
    }
    return stand_in


@pytest.fixture
async def espalier(gateway: StandIn, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Command]:
    """The command line of a user whose environment names the gateway."""
    async with TestServer(gateway.app()) as running:
        monkeypatch.setenv("ESPALIER_GATEWAY_URL", str(running.make_url("/")))
        monkeypatch.setenv("ESPALIER_TOKEN", "secret")

        async def command(*arguments: str) -> Result:
            invoke = CliRunner().invoke
            return await asyncio.to_thread(invoke, app, ["-n", "default", *arguments])

        yield command


async def test_ask_prints_each_question_with_its_greedy_answer(
    gateway: StandIn, espalier: Command
) -> None:
    gateway.answer = lambda prompt, index: f"About\n{prompt}"
    done = await espalier("ask", "tiny", "What is 1 + 1?", "And 2 + 2?")
    assert done.output == (
        "What is 1 + 1?\n    About What is 1 + 1?\nAnd 2 + 2?\n    About And 2 + 2?\n"
    )
    assert [(s["model"], s["temperature"]) for s in gateway.samples] == [("default/tiny", 0)] * 2
    assert gateway.tokens[0] == "Bearer secret"


async def test_ask_may_name_a_checkpoint(gateway: StandIn, espalier: Command) -> None:
    await espalier("ask", "tiny", "2 + 2", "--checkpoint", "tiny-000004")
    assert gateway.samples[0]["model"] == "default/tiny@tiny-000004"


async def test_evaluate_asks_only_what_the_run_was_not_trained_on(
    gateway: StandIn, espalier: Command
) -> None:
    gateway.answer = lambda prompt, index: "Calculate 2 + 2."
    done = await espalier("evaluate", "run", "--seed", "2", "--size", "32", "--json")
    assert done.exit_code == 0, done.output
    prompts = [sample["messages"][-1]["content"] for sample in gateway.samples]
    assert len(set(prompts)) == 32
    trained = _training_prompts()
    assert len(trained) > 10
    assert not trained & set(prompts)
    found = json.loads(done.output)
    assert (found["run"], found["model"], found["size"]) == ("run", "tiny", 32)


async def test_evaluate_prints_the_mean_reward(gateway: StandIn, espalier: Command) -> None:
    def solve(prompt: str, index: int) -> str:
        left, _, right = prompt.removeprefix("Calculate ").removesuffix(".").split()
        return str(int(left) + int(right)) if int(left) < 5 else "none"

    gateway.answer = solve
    done = await espalier("evaluate", "run", "--seed", "7", "--size", "40", "--checkpoint", "base")
    asked = [sample["messages"][-1]["content"] for sample in gateway.samples]
    right = sum(int(prompt.split()[1]) < 5 for prompt in asked)
    assert 0 < right < 40
    begins = f"tiny@base: mean reward {right / 40:.3f} on 40 held-out tasks (95 %: "
    assert done.output.startswith(begins)
    assert {sample["model"] for sample in gateway.samples} == {"default/tiny@base"}


async def test_evaluate_may_take_held_out_tasks_from_a_file(
    gateway: StandIn, espalier: Command, tmp_path: Path
) -> None:
    path = tmp_path / "heldout.jsonl"
    path.write_text('{"prompt": "5=", "answer": "5"}\n{"prompt": "6=", "answer": "7"}\n')
    done = await espalier("evaluate", "run", "--seed", "2", "--tasks", str(path))
    assert done.output == "tiny: mean reward 0.500 on 2 held-out tasks\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seed", "1"), "seed 1 is the seed that the run trains on. Choose another seed"),
        (("--seed", "2", "--size", "111"), "tasks differ from those that the run trains on"),
    ],
)
async def test_evaluate_refuses_what_would_not_be_held_out(
    espalier: Command, arguments: tuple[str, ...], message: str
) -> None:
    done = await espalier("evaluate", "run", *arguments)
    assert done.exit_code == 1
    assert message in done.output


HANGING = {"seed": 1, "size": 20, "scoreTimeoutSeconds": 2, "answerExtraction": "Whole"}


async def test_evaluate_scores_nothing_in_a_process_that_holds_the_token(
    gateway: StandIn, espalier: Command
) -> None:
    gateway.spec["taskset"] = {**HANGING, "reasoningGym": {"dataset": "countdown"}}
    asked = iter(range(100))
    gateway.answer = lambda prompt, index: "exit()" if next(asked) else "9**9**9**9"
    done = await espalier("evaluate", "run", "--seed", "900", "--size", "3")
    assert done.exit_code == 0, done.output
    assert done.output == "tiny: mean reward 0.010 on 2 held-out tasks, scorer errors: 1\n"


async def test_evaluate_counts_what_cannot_be_scored_as_the_run_says(
    gateway: StandIn, espalier: Command
) -> None:
    source = {"reasoningGym": {"dataset": "countdown"}}
    gateway.answer = lambda prompt, index: "9**9**9**9"
    ends = []
    for policy in ("Zero", "Fail", "DropGroup"):
        gateway.spec["taskset"] = {**HANGING, **source, "onError": policy}
        ends.append(await espalier("evaluate", "run", "--seed", "900", "--size", "2"))
    zero, fail, drop = ends
    assert zero.output == "tiny: mean reward 0.000 on 2 held-out tasks, scorer errors: 2\n"
    assert fail.exit_code == drop.exit_code == 1
    assert "ScorerFailed: task reasoning-gym/countdown/" in fail.output
    assert "ScorerFailed: no answer could be scored: Timeout (2)" in drop.output


async def test_evaluate_counts_the_rewards_that_the_run_declares(
    gateway: StandIn, espalier: Command
) -> None:
    gateway.spec["rewards"] = [
        {"name": "right", "weight": "2", "numeric": {}},
        {"name": "shouts", "weight": "-0.5", "regex": {"pattern": "!"}},
    ]

    def solve(prompt: str, index: int) -> str:
        left, _, right = prompt.removeprefix("Calculate ").removesuffix(".").split()
        return f"{int(left) + int(right)} !"

    gateway.answer = solve
    done = await espalier("evaluate", "run", "--seed", "2", "--size", "8")
    assert done.output == "tiny: mean reward 1.500 on 8 held-out tasks\n"


async def test_evaluate_refuses_a_reward_that_it_does_not_reach(
    gateway: StandIn, espalier: Command
) -> None:
    there = {"serviceRef": {"name": "checker", "port": 80}}
    gateway.spec["rewards"] = [{"name": "tests", "http": there}]
    done = await espalier("evaluate", "run", "--seed", "2", "--size", "8")
    assert done.exit_code == 1
    assert "Service checker is reached from inside the cluster alone" in done.output
    assert not gateway.samples


async def test_a_refusal_is_one_line(gateway: StandIn, espalier: Command) -> None:
    gateway.fail("chat", 404)
    done = await espalier("ask", "tiny", "2 + 2")
    assert done.exit_code == 1
    assert done.output == "error: 404 Status404: Status404 happened. Mend it\n"


@pytest.mark.parametrize("missing", ["ESPALIER_GATEWAY_URL", "ESPALIER_TOKEN"])
async def test_missing_access_says_how_to_get_it(
    espalier: Command, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delenv(missing)
    done = await espalier("ask", "tiny", "2 + 2")
    assert done.exit_code == 1
    assert f"Set {missing}" in done.output


def _training_prompts() -> set[str]:
    from espalier.api.run.taskset import Taskset
    from espalier.runner.open_taskset import open_tasks

    tasks = open_tasks(Taskset.model_validate({"seed": 1, "size": 20, "reasoningGym": SUMS}))
    return {tasks.task(index).messages[-1].content for index in range(20)}


async def test_evaluate_records_pass_at_k_with_the_checkpoint_that_answered(
    gateway: StandIn, espalier: Command
) -> None:
    gateway.head = "tiny-000004"
    several = ("--answers", "4", "--temperature", "0.5", "--record", "by-hand")
    done = await espalier("evaluate", "run", "--seed", "900", "--size", "3", *several)
    assert done.exit_code == 0, done.output
    assert ", pass@4 0.000, recorded with tiny-000004" in done.output
    kept = gateway.evaluations["tiny-000004", "by-hand"]
    assert kept["tasks"] == 3
    assert sorted(kept["metrics"]) == [
        *("mean_reward", "mean_reward_high", "mean_reward_low", "pass@1", "pass@4"),
    ]
    assert {sample["n"] for sample in gateway.samples} == {4}


async def test_evaluate_records_nothing_of_the_base_and_no_greedy_answers_twice(
    gateway: StandIn, espalier: Command
) -> None:
    base = ("--checkpoint", "base", "--record", "by-hand")
    done = await espalier("evaluate", "run", "--seed", "900", "--size", "3", *base)
    assert done.exit_code != 0
    assert "no Checkpoint of tiny" in done.output
    done = await espalier("evaluate", "run", "--seed", "900", "--answers", "2")
    assert done.exit_code != 0
    assert "give --temperature above 0" in done.output
    assert gateway.evaluations == {}
