"""The examples of environments: accepted by a real API server, and played as they are shipped."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from dev.apiserver import ApiServer
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
            assert TrainingRun.model_validate(body).spec.taskset is not None
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


async def test_the_guess_is_played_by_its_own_image_s_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    taskset = run_of("python.yaml").spec.taskset
    assert taskset is not None
    socket = tmp_path / "host.sock"
    command = (sys.executable, host.__file__, str(socket))
    environment = PythonEnvironment(taskset, socket=socket, command=command)
    await environment.ready()
    number = environment.task(0).data["number"]
    low_first = Model(lambda chat: "0" if len(chat) == 1 else f"It is {number}.")
    try:
        reward, talk = await played(environment, low_first)
    finally:
        await environment.close()
    assert reward == pytest.approx(1 if number == 0 else 1 - 1 / 7)
    assert talk.rollout.stop_reason == "done"
