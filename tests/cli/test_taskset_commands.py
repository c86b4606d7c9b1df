"""taskset preview and calibrate: of a manifest that is not applied, against a gateway over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp.test_utils import TestServer
from tests.runner.standin import StandIn, spec
from typer.testing import CliRunner, Result

from espalier.cli.main import app

Command = Callable[..., Awaitable[Result]]

CLAIM = {"claimName": "c", "path": "t.jsonl"}
MODULE = "def reward(prompt, completion, answer, task):\n    return 3.0 * (completion == answer)\n"
LINES = [{"id": f"n{digit}", "prompt": f"{digit}=", "answer": str(digit)} for digit in range(8)]


def manifest(path: Path, *, name: str = "digits-3", **changes: Any) -> str:
    """A run and its ConfigMap in one file."""
    tasks = "\n".join(map(json.dumps, LINES))
    documents = [
        {
            "apiVersion": "espalier.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": name},
            "spec": spec(**changes),
        },
        {
            "kind": "ConfigMap",
            "metadata": {"name": "digits"},
            "data": {"tasks.jsonl": tasks, "reward.py": MODULE},
        },
    ]
    path.write_text(yaml.safe_dump_all(documents))
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return manifest(tmp_path / "run.yaml")


@pytest.fixture
def gateway() -> StandIn:
    return StandIn()


@pytest.fixture
async def espalier(gateway: StandIn, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Command]:
    async with TestServer(gateway.app()) as running:
        monkeypatch.setenv("ESPALIER_GATEWAY_URL", str(running.make_url("/")))
        monkeypatch.setenv("ESPALIER_TOKEN", "secret")

        async def command(*arguments: str) -> Result:
            invoke = CliRunner().invoke
            return await asyncio.to_thread(invoke, app, ["-n", "team", "taskset", *arguments])

        yield command


async def test_a_preview_shows_the_first_tasks_as_the_run_asks_them(
    espalier: Command, tmp_path: Path
) -> None:
    taskset = spec()["taskset"] | {"systemPrompt": "Be brief.", "promptTemplate": "Say {question}"}
    file = manifest(tmp_path / "run.yaml", taskset=taskset)
    done = await espalier("preview", "--file", file, "--count", "2", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["size"] == 8
    # In the order that the seed draws, so not the first lines.
    (first, second) = found["tasks"]
    assert first["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"Say {first['answer']}="},
    ]
    assert first["id"] == f"n{first['answer']}"
    assert second["id"] != first["id"]


async def test_a_preview_reads_well(espalier: Command, file: str) -> None:
    done = await espalier("preview", "digits-3", "-f", file, "--count", "1")
    head, user, answer, _, end = done.output.splitlines()
    assert head.startswith("== n")
    assert user == f"user: {head[-1]}="
    assert answer == f"answer: {head[-1]}"
    assert end.startswith("1 of 8 tasks, sha256:")


async def test_a_preview_of_a_played_task_shows_what_it_begins_with(
    espalier: Command, tmp_path: Path
) -> None:
    taskset = {"seed": 1, "size": 3, "calculator": {"terms": 2}}
    file = manifest(tmp_path / "run.yaml", taskset=taskset)
    done = await espalier("preview", "-f", file, "--count", "1")
    head, user, answer, _, end = done.output.splitlines()
    assert head == "== calculator/2x3/0"
    assert user.startswith("user: What is ")
    assert answer.startswith("answer: ")
    assert end.startswith("1 of 3 tasks, sha256:")
    found = json.loads((await espalier("preview", "-f", file, "--json")).output)
    assert found["digest"] == end.split(", ")[1]


async def test_a_preview_of_an_image_runs_its_modules_in_the_working_directory(
    espalier: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "def tasks(seed, size):",
        "    return [{'id': 'one', 'prompt': '1+1='}]",
        "async def rollout(task, session):",
        "    return 1.0",
    ]
    (tmp_path / "adding.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    python = {"image": "i", "tasks": "adding:tasks", "rollout": "adding:rollout"}
    file = manifest(tmp_path / "run.yaml", taskset={"seed": 1, "python": python})
    done = await espalier("preview", "-f", file)
    assert done.output.splitlines()[:2] == ["== python/adding:tasks/one", "user: 1+1="]
    python["rollout"] = "adding:play"
    file = manifest(tmp_path / "run.yaml", taskset={"seed": 1, "python": python})
    done = await espalier("preview", "-f", file)
    assert done.exit_code != 0
    assert "module adding has no function play" in done.output


IMAGE_TASKSETS = (
    {"python": {"image": "i", "tasks": "absent:tasks", "rollout": "absent:rollout"}},
    {"verifiers": {"image": "i", "id": "absent"}},
)


@pytest.mark.parametrize("played", IMAGE_TASKSETS, ids=["wrong directory", "no verifiers"])
async def test_a_preview_that_finds_no_module_says_where_it_looked_and_shows_none_of_our_lines(
    espalier: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    played: dict[str, Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    done = await espalier(
        "preview", "-f", manifest(tmp_path / "run.yaml", taskset={"seed": 1} | played)
    )
    assert done.exit_code != 0
    assert "ModuleNotFoundError" in done.output
    assert "go to the directory of the image's modules" in done.output
    assert "container" not in done.output
    # The process of the functions writes there.
    assert "Traceback" not in capfd.readouterr().err


async def test_a_preview_shows_where_the_users_own_module_fails(
    espalier: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "adding.py").write_text("import absent\n")
    monkeypatch.chdir(tmp_path)
    python = {"image": "i", "tasks": "adding:tasks", "rollout": "adding:rollout"}
    await espalier(
        "preview", "-f", manifest(tmp_path / "run.yaml", taskset={"seed": 1, "python": python})
    )
    shown = capfd.readouterr().err
    assert "adding.py" in shown
    assert "host.py" not in shown


async def test_a_preview_of_a_mix_shows_no_index_as_an_answer(
    espalier: Command, tmp_path: Path
) -> None:
    parts = [{"name": "chain_sum", "weightPercent": 100}]
    taskset = {"seed": 1, "size": 2, "reasoningGym": {"datasets": parts}}
    file = manifest(tmp_path / "run.yaml", taskset=taskset)
    (first, _) = json.loads((await espalier("preview", "-f", file, "--json")).output)["tasks"]
    assert (first["id"], first["answer"]) == ("reasoning-gym/chain_sum/0", None)


async def test_calibration_samples_as_the_run_would_and_trains_nothing(
    gateway: StandIn, espalier: Command, file: str
) -> None:
    done = await espalier("calibrate", "-f", file, "--groups", "4", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    # Every other answer of the stand-in repeats the digit.
    assert (found["reward_mean"], found["spread"], found["teaching"]) == (0.5, 0.5, 1.0)
    assert (found["groups"], found["answers"]) == (4, 16)
    assert {(s["n"], s["temperature"], s["max_tokens"]) for s in gateway.samples} == {(4, 1.0, 4)}
    assert {s["model"] for s in gateway.samples} == {"team/tiny@base"}
    assert gateway.commands == []


async def test_calibration_may_ask_a_checkpoint_and_names_what_stands_in_the_way(
    gateway: StandIn, espalier: Command, file: str
) -> None:
    gateway.answer = lambda prompt, index: "none"
    done = await espalier("calibrate", "-f", file, "--checkpoint", "tiny-000002")
    assert "0% teach, 0% all solved, 100% all failed" in done.output
    assert "The model solves none" in done.output
    assert gateway.samples[0]["model"] == "team/tiny@tiny-000002"


async def test_calibration_uses_the_rewards_that_the_manifest_brings_along(
    espalier: Command, tmp_path: Path
) -> None:
    python = {"configMapRef": {"name": "digits"}}
    rewards = [{"name": "own", "weight": "0.5", "python": python}]
    file = manifest(tmp_path / "run.yaml", rewards=rewards)
    done = await espalier("calibrate", "-f", file, "--groups", "2", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["reward_mean"] == 0.75


async def test_tasks_that_do_not_fit_are_counted(
    gateway: StandIn, espalier: Command, file: str
) -> None:
    gateway.context = 1
    done = await espalier("calibrate", "-f", file, "--groups", "4", "--json")
    assert json.loads(done.output)["too_long"] == 4


@pytest.mark.parametrize(
    ("changes", "arguments", "words"),
    [
        ({}, ("--count", "0"), "--count"),
        ({"name": "other"}, ("digits-3",), "the runs in it: other"),
        ({"steps": "many"}, (), "spec.steps"),
        (
            {"driver": "Client", "taskset": None},
            (),
            "has no taskset: its script chooses the tasks",
        ),
        (
            {
                "taskset": {
                    "seed": 1,
                    "persistentVolumeClaim": {"claimName": "c", "path": "t.jsonl"},
                }
            },
            (),
            "Give a copy of the file with --tasks",
        ),
        (
            {"taskset": {"seed": 1, "reasoningGym": {"dataset": "chain_sum"}}},
            ("--tasks", "x.jsonl"),
            "--tasks: the run's tasks lie in no file",
        ),
    ],
)
async def test_a_mistake_is_named_with_what_to_do(
    espalier: Command, tmp_path: Path, changes: Any, arguments: tuple[str, ...], words: str
) -> None:
    done = await espalier("preview", *arguments, "-f", manifest(tmp_path / "run.yaml", **changes))
    assert done.exit_code == 2
    assert words in done.output


async def test_a_file_that_is_not_there_is_named(espalier: Command, tmp_path: Path) -> None:
    done = await espalier("preview", "-f", str(tmp_path / "no.yaml"))
    assert done.exit_code == 2
    assert "cannot be read" in done.output


async def test_a_copy_of_a_claims_file_is_read(espalier: Command, tmp_path: Path) -> None:
    taskset = {"seed": 1, "persistentVolumeClaim": CLAIM}
    copy = tmp_path / "t.jsonl"
    copy.write_text("\n".join(map(json.dumps, LINES[:2])))
    file = manifest(tmp_path / "run.yaml", taskset=taskset)
    done = await espalier("preview", "-f", file, "--tasks", str(copy))
    assert "\n2 of 2 tasks, sha256:" in done.output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: TrainingRun\nmetadata: mine\nspec: {}", "metadata"),
        ("kind: TrainingRun\nspec: {}", "metadata"),
        ("kind: [", "is not YAML"),
        ("kind: ConfigMap\ndata: text", "the runs in it: none"),
    ],
)
async def test_a_file_that_is_no_manifest_of_a_run_is_named(
    espalier: Command, tmp_path: Path, text: str, words: str
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    done = await espalier("preview", "-f", str(file))
    assert done.exit_code == 2
    assert words in done.output
