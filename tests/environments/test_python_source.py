"""A user's functions in a host process: honest ones, and those that fail, hang, flood and lie."""

from __future__ import annotations

import ast
import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.environments.talk import Model, played

from espalier.api.run.taskset import Taskset
from espalier.environments import host
from espalier.environments.errors import RolloutFailedError, UserError
from espalier.environments.host_link import MOST_LINE_BYTES, MOST_LOST, Patience
from espalier.environments.python_source import PythonEnvironment

GAME = """
import asyncio, os, sys, time

def tasks(seed, size):
    for number in range(size + 5):
        yield {"id": f"{seed}-{number}", "prompt": f"{number}+1="}

async def rollout(task, session):
    turn = await session.say(task["prompt"])
    while turn.text == "again":
        turn = await session.say("Again?", max_tokens=3)
    session.metadata["seed"] = session.seed
    session.stop("solved")
    return float(turn.text == "1")

async def raises(task, session):
    raise ValueError("no such move")

async def dies(task, session):
    os._exit(3)

async def hangs(task, session):
    await asyncio.sleep(3600)

async def blocks(task, session):
    time.sleep(3600)

async def lies(task, session):
    return "all of it"

async def floods(task, session):
    session.metadata["text"] = "a" * 2_000_000
    return 1.0

async def no_number(task, session):
    return float("nan")

async def talks(task, session):
    await session.say({"role": "king", "content": "obey"})

async def asks(task, session):
    await session.say("?", nonsense=1)

def plain(task, session):
    return 1.0

def none(seed, size):
    return []

def same(seed, size):
    return [{"id": "a"}, {"id": "a"}]

def text(seed, size):
    return ["a"]

def broken(seed, size):
    raise KeyError("no file")

def random(seed, size):
    return [{"id": str(time.time())}]
"""

Open = Callable[..., PythonEnvironment]
BRIEF = Patience(connect=20, open=20, cancel=0.5)


@pytest.fixture
async def opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    (tmp_path / "game.py").write_text(GAME)
    # The host runs where the user's modules are, with none of this process' environment.
    monkeypatch.chdir(tmp_path)
    made: list[PythonEnvironment] = []

    def open_it(rollout: str = "rollout", tasks: str = "tasks", **fields: Any) -> PythonEnvironment:
        functions = {"tasks": f"game:{tasks}", "rollout": f"game:{rollout}"}
        source = {"image": "registry.example/game:1", **functions, **fields}
        spec = Taskset.model_validate({"seed": 7, "size": 3, "python": source})
        path = tmp_path / f"{len(made)}.sock"
        command = (sys.executable, host.__file__, str(path))
        made.append(PythonEnvironment(spec, socket=path, command=command, patience=BRIEF))
        return made[-1]

    yield open_it
    for environment in made:
        await environment.close()


async def test_the_users_function_plays_and_every_turn_is_sampled_by_the_runner(
    opens: Open,
) -> None:
    environment = opens()
    await environment.ready()
    assert environment.size == 3
    assert environment.task(1).id == "python/game:tasks/7-1"
    assert environment.task(1).messages[0].content == "1+1="
    model = Model(lambda chat: "1" if len(chat) > 2 else "again")
    reward, talk = await played(environment, model, index=0, rollout=2)
    assert (reward, talk.rollout.stop_reason, len(talk.rollout.turns)) == (1, "solved", 2)
    assert model.heard[0][0] == [{"role": "user", "content": "0+1="}]
    # The second turn goes on from the tokens of the first.
    assert model.heard[1][1]["continuation_from"] == 2
    other = await played(environment, Model(lambda chat: "2"), index=0, rollout=1)
    assert other[0] == 0
    assert other[1].metadata["seed"] != talk.metadata["seed"]


async def test_rollouts_are_played_at_the_same_time(opens: Open) -> None:
    environment = opens()
    await environment.ready()
    games = [played(environment, Model(lambda chat: "1"), index=i % 3) for i in range(32)]
    assert [reward for reward, _ in await asyncio.gather(*games)] == [1.0] * 32


@pytest.mark.parametrize(
    ("rollout", "cause", "detail"),
    [
        ("raises", "Raised", "ValueError: no such move"),
        ("dies", "Died", "its process ended"),
        ("hangs", "Timeout", "longer than 1 s, during the user's rollout"),
        ("blocks", "Timeout", "longer than 1 s"),
        ("lies", "Malformed", "'all of it'"),
        ("floods", "Died", f"longer than {MOST_LINE_BYTES} bytes"),
        ("no_number", "NotFinite", "nan"),
        ("talks", "Raised", "messages[0].role"),
        ("asks", "Raised", "nonsense is no sampling parameter"),
    ],
)
async def test_a_rollout_that_comes_to_nothing_is_named(
    opens: Open, rollout: str, cause: str, detail: str
) -> None:
    environment = opens(rollout, timeoutSeconds=1)
    await environment.ready()
    with pytest.raises(RolloutFailedError) as caught:
        await played(environment, Model(lambda chat: "1"))
    assert caught.value.cause == cause
    assert detail in caught.value.detail


async def test_a_host_that_blocks_is_given_up_and_its_process_ends(opens: Open) -> None:
    environment = opens("blocks", timeoutSeconds=1)
    await environment.ready()
    process = environment._process
    assert process is not None
    with pytest.raises(RolloutFailedError):
        await played(environment, Model(lambda chat: "1"))
    # Its listening thread sees the end of the connection though its loop is stuck.
    assert await asyncio.wait_for(process.wait(), 60) == 0


async def test_a_host_that_is_started_again_goes_on(opens: Open) -> None:
    environment = opens()
    await environment.ready()
    assert environment._process is not None
    environment._process.kill()
    await environment._process.wait()
    environment._process = await asyncio.create_subprocess_exec(*environment._command)
    assert (await played(environment, Model(lambda chat: "1")))[0] == 1


async def restarted(environment: PythonEnvironment) -> None:
    """As a kubelet does it."""
    assert environment._process is not None
    await environment._process.wait()
    environment._process = await asyncio.create_subprocess_exec(*environment._command)


async def test_a_host_that_dies_again_and_again_ends_the_run_by_name(opens: Open) -> None:
    environment = opens("dies")
    await environment.ready()
    for _ in range(MOST_LOST):
        with pytest.raises(RolloutFailedError, match="its process ended"):
            await played(environment, Model(lambda chat: "1"))
        await restarted(environment)
    with pytest.raises(UserError) as caught:
        await played(environment, Model(lambda chat: "1"))
    problem = caught.value.problem
    assert problem.reason == "EnvironmentDied"
    assert "taskset.python: its host was lost 5 times in a row" in problem.detail
    assert "container environment" in problem.remedy


async def test_a_host_that_does_not_come_back_ends_the_run_by_name(opens: Open) -> None:
    environment = opens()
    await environment.ready()
    environment._link._patience = replace(BRIEF, connect=0.1)
    assert environment._process is not None
    environment._process.kill()
    await environment._process.wait()
    with pytest.raises(UserError, match=r"none came in its place.* within 0\.1 s"):
        await played(environment, Model(lambda chat: "1"))


async def test_a_host_that_comes_back_with_other_tasks_ends_the_run_by_name(opens: Open) -> None:
    environment = opens(tasks="random")
    await environment.ready()
    assert environment._process is not None
    environment._process.kill()
    await environment._process.wait()
    environment._process = await asyncio.create_subprocess_exec(*environment._command)
    with pytest.raises(UserError, match="TasksetChanged"):
        await played(environment, Model(lambda chat: "1"))


async def test_turns_are_bounded(opens: Open) -> None:
    environment = opens(maxTurns=3)
    await environment.ready()
    model = Model(lambda chat: "again")
    with pytest.raises(RolloutFailedError, match=r"\(maxTurns\) are spent"):
        await played(environment, model)
    assert len(model.heard) == 3


@pytest.mark.parametrize(
    ("functions", "detail"),
    [
        ({"rollout": "plain"}, "game:plain is no async def function"),
        ({"rollout": "missing"}, "rollout: module game has no function missing"),
        ({"tasks": "none"}, "gave no tasks"),
        ({"tasks": "same"}, "two tasks have the id a"),
        ({"tasks": "text"}, "task 0 is no object"),
        ({"tasks": "broken"}, "KeyError: 'no file'"),
    ],
)
async def test_functions_that_cannot_be_used_are_refused_by_name(
    opens: Open, functions: dict[str, str], detail: str
) -> None:
    environment = opens(**functions)
    with pytest.raises(UserError) as caught:
        await environment.ready()
    assert caught.value.problem.reason == "TasksetInvalid"
    assert detail in caught.value.problem.detail


async def test_nobody_who_connects_is_an_error_within_its_time(tmp_path: Path) -> None:
    source = {"image": "i", "tasks": "a:b", "rollout": "a:c"}
    spec = Taskset.model_validate({"seed": 1, "python": source})
    environment = PythonEnvironment(spec, socket=tmp_path / "s", patience=Patience(connect=0.1))
    with pytest.raises(UserError, match=r"did not connect within 0\.1 s"):
        await environment.ready()
    await environment.close()


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        (b"nonsense\n", "a line is no JSON"),
        (b"[1]\n", "a line is no JSON object"),
        (b"[" * 100_000 + b"\n", "a line is no JSON"),
        (b'{"hello": 99}\n', "did not greet"),
        (b'{"hello": 1}\n{"cancelled": 5}\n', "cancelled what nobody asked"),
        (b'{"hello": 1}\n' + b'{"rollout": 9, "turn": "say"}\n' * 100, "rollouts that are not"),
        (b'{"hello": 1}\n{"opened": 0}\n{"opened": 0}\n', "it opened twice"),
        (b"a" * (MOST_LINE_BYTES + 2), "longer than"),
    ],
)
async def test_a_host_that_is_not_of_the_protocol_is_given_up(
    tmp_path: Path, said: bytes, detail: str
) -> None:
    source = {"image": "i", "tasks": "a:b", "rollout": "a:c"}
    spec = Taskset.model_validate({"seed": 1, "python": source})
    path = tmp_path / "s"
    environment = PythonEnvironment(spec, socket=path, patience=Patience(connect=1, open=5))

    async def liar() -> None:
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(said)
        await asyncio.sleep(5)

    opening = asyncio.ensure_future(environment.ready())
    await asyncio.sleep(0.1)
    lying = asyncio.ensure_future(liar())
    with pytest.raises(UserError) as caught:
        await opening
    lying.cancel()
    await environment.close()
    assert detail in caught.value.problem.detail


def test_the_host_is_python_of_3_9_and_needs_no_package() -> None:
    tree = ast.parse(Path(host.__file__).read_text(), feature_version=(3, 9))
    modules = {
        name.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
    } | {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules <= set(sys.stdlib_module_names) | {"__future__"}


async def test_the_socket_replaces_whatever_lay_there(opens: Open, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / "0.sock").symlink_to(victim)
    environment = opens()
    await environment.ready()
    assert victim.read_text() == "kept"
    assert (tmp_path / "0.sock").is_socket()
