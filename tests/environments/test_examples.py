"""The examples of environments: accepted by a real API server, and played as they are shipped."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from dev.apiserver import ApiServer
from tests.environments.open_env_process import serving
from tests.environments.packages import OPENENV, VERIFIERS, interpreter
from tests.environments.talk import Model, played

from espalier.api.trainingrun import TrainingRun
from espalier.environments import host
from espalier.environments.open_environment import open_environment
from espalier.environments.python_source import PythonEnvironment
from espalier.local.admission import refusals

EXAMPLES = Path(__file__).parents[2] / "examples" / "environments"
FILES = sorted(EXAMPLES.glob("*.yaml"))
RUN = "TrainingRun"


def run_of(name: str) -> TrainingRun:
    bodies = yaml.safe_load_all((EXAMPLES / name).read_text())
    return TrainingRun.model_validate(next(body for body in bodies if body["kind"] == RUN))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_example_keeps_the_rules_and_is_read(file: Path) -> None:
    for body in yaml.safe_load_all(file.read_text()):
        if body["kind"] == RUN:
            spec = TrainingRun.model_validate(body).spec
            assert (spec.taskset is None) == (spec.driver == "Client")
            assert list(refusals(body, None)) == []


def test_a_real_api_server_takes_them_all(apiserver: ApiServer, namespace: str) -> None:
    for file in FILES:
        apiserver.kubectl("apply", "-n", namespace, "-f", str(file))
    found = apiserver.kubectl("get", "trainingruns", "-n", namespace, "-o", "name").split()
    assert len(found) == len(FILES)


async def test_the_game_is_played_to_a_reward() -> None:
    taskset = run_of("game_2048.yaml").spec.taskset
    assert taskset is not None
    words = ("left", "down", "right", "up")

    def says(chat: Sequence[Mapping[str, Any]]) -> str:
        return words[len(chat) // 2 % 4]

    reward, talk = await played(open_environment(taskset), Model(says))
    assert 0 < reward <= 1
    assert len(talk.rollout.turns) <= 24


@asynccontextmanager
async def hosted(
    name: str, modules: str, python: str, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> AsyncIterator[PythonEnvironment]:
    """The environment of an example, its host started as its image would do it."""
    monkeypatch.chdir(EXAMPLES / modules)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    taskset = run_of(name).spec.taskset
    assert taskset is not None
    socket = scratch / "host.sock"
    command = (python, host.__file__, str(socket))
    environment = PythonEnvironment(taskset, socket=socket, command=command)
    await environment.ready()
    try:
        yield environment
    finally:
        await environment.close()


async def test_the_guess_is_played_by_its_own_image_s_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hosted("python.yaml", "guess", sys.executable, monkeypatch, tmp_path) as environment:
        number = environment.task(0).data["number"]
        low_first = Model(lambda chat: "0" if len(chat) == 1 else f"It is {number}.")
        reward, talk = await played(environment, low_first)
    assert reward == pytest.approx(1 if number == 0 else 1 - 0.5 / 4)
    assert talk.rollout.stop_reason == "done"


@pytest.mark.packages
async def test_the_sums_are_scored_by_verifiers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = await asyncio.to_thread(interpreter, VERIFIERS)
    async with hosted("verifiers.yaml", "sums", python, monkeypatch, tmp_path) as environment:
        answer = environment.task(0).data["data"]["answer"]
        brief, _ = await played(environment, Model(lambda chat: answer))
        wordy, _ = await played(environment, Model(lambda chat: f"That is {answer}"))
    assert (environment.size, brief) == (256, pytest.approx(1))
    assert wordy == pytest.approx(0.8 + 0.2 / 3)


@pytest.mark.packages
async def test_the_corridor_is_walked_on_its_server() -> None:
    python = await asyncio.to_thread(interpreter, OPENENV)
    taskset = run_of("open_env.yaml").spec.taskset
    assert taskset is not None
    assert taskset.open_env is not None

    def walks(chat: Sequence[Mapping[str, Any]]) -> str:
        place, treasure = map(int, re.findall(r"\d+", chat[-1]["content"]))
        return "Right." if place < treasure else "left"

    async with serving(python, EXAMPLES / "corridor" / "corridor.py") as port:
        here = taskset.open_env.service_ref.model_copy(update={"name": "localhost", "port": port})
        source = taskset.open_env.model_copy(update={"service_ref": here})
        environment = open_environment(taskset.model_copy(update={"open_env": source}))
        await environment.ready()
        try:
            reward, talk = await played(environment, Model(walks))
        finally:
            await environment.close()
    assert reward == pytest.approx(1)
    assert talk.rollout.stop_reason == "done"
