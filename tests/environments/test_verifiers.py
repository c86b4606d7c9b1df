"""Tasksets of verifiers, with the real package: its tasks and rewards, our host and rollouts.

The package is half a gigabyte and lives in the user's image, not in ours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.environments.packages import VERIFIERS, interpreter
from tests.environments.talk import Model, played

from espalier.api.run.taskset import Taskset
from espalier.environments import host
from espalier.environments.errors import RolloutFailedError, UserError
from espalier.environments.python_source import PythonEnvironment

pytestmark = pytest.mark.packages

SUMS = """
import verifiers.v1 as vf

class Data(vf.TaskData):
    answer: str

class Config(vf.TasksetConfig):
    most: int = 5

class Sum(vf.Task[Data]):
    @vf.reward(weight=0.75)
    async def right(self, task: Data, trace: vf.Trace) -> float:
        return float(trace.last_reply == task.answer)

    @vf.reward(weight=0.25)
    async def brief(self, task: Data, trace: vf.Trace) -> float:
        if trace.last_reply == "raise":
            raise ValueError("no reply")
        return float(len(trace.last_reply) < 4)

    @vf.metric
    async def length(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply))

class Sums(vf.Taskset[Sum, Config]):
    def load(self):
        for n in range(self.config.most):
            yield Sum(Data(prompt=f"{n}+1=", system_prompt="Be brief.", answer=str(n + 1)),
                      self.config.task)

__all__ = ["Sums"]
"""
BOXED = SUMS.replace(
    "class Sum(vf.Task[Data]):", "class Sum(vf.Task[Data]):\n    NEEDS_CONTAINER = True"
)
STOP = "    @vf.stop\n    async def soon(self, trace: vf.Trace) -> bool:\n        return True\n\n"
STOPPING = SUMS.replace("    @vf.metric", f"{STOP}    @vf.metric")
RUNNING = SUMS.replace("def brief(self, task: Data", "def brief(self, runtime: vf.Runtime")
ENDLESS = SUMS.replace("    def load(self):", "    INFINITE = True\n\n    def load(self):").replace(
    "range(self.config.most)", "__import__('itertools').count()"
)

Open = Callable[..., PythonEnvironment]


@pytest.fixture
async def opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    monkeypatch.chdir(tmp_path)
    made: list[PythonEnvironment] = []

    def open_it(text: str = SUMS, name: str = "sums", **config: Any) -> PythonEnvironment:
        (tmp_path / "sums.py").write_text(text)
        source = {"image": "registry.example/sums:1", "id": name, "config": config}
        spec = Taskset.model_validate({"seed": 7, "size": 4, "verifiers": source})
        path = tmp_path / "host.sock"
        command = (interpreter(VERIFIERS), host.__file__, str(path))
        made.append(PythonEnvironment(spec, socket=path, command=command))
        return made[-1]

    yield open_it
    for environment in made:
        await environment.close()


async def test_its_tasks_are_asked_and_its_weighted_rewards_are_paid(opens: Open) -> None:
    environment = opens()
    await environment.ready()
    assert environment.size == 4
    task = environment.task(0)
    assert task.id.startswith("verifiers/sums/")
    answer = task.data["data"]["answer"]
    model = Model(lambda chat: answer)
    reward, talk = await played(environment, model)
    assert reward == 1
    assert [message["role"] for message in model.heard[0][0]] == ["system", "user"]
    assert talk.metadata["rewards"] == {"right": 0.75, "brief": 0.25}
    assert talk.metadata["metrics"] == {"length": 1.0}
    assert (await played(environment, Model(lambda chat: "0")))[0] == 0.25
    assert (await played(environment, Model(lambda chat: "a long reply")))[0] == 0


async def test_a_reward_that_raises_ends_the_rollout_by_name(opens: Open) -> None:
    environment = opens()
    await environment.ready()
    with pytest.raises(RolloutFailedError) as caught:
        await played(environment, Model(lambda chat: "raise"))
    assert caught.value.cause == "Raised"
    assert "no reply" in caught.value.detail


async def test_an_endless_taskset_gives_as_many_as_are_declared(opens: Open) -> None:
    environment = opens(ENDLESS)
    await environment.ready()
    assert environment.size == 4


@pytest.mark.parametrize(
    ("text", "name", "config", "detail"),
    [
        (SUMS, "missing", {}, "taskset 'missing' not found"),
        (SUMS, "sums", {"most": 0}, "gave no tasks"),
        (SUMS, "sums", {"least": 1}, "Extra inputs are not permitted"),
        (BOXED, "sums", {}, "Sum needs a container"),
        (STOPPING, "sums", {}, "Sum has @vf.stop methods"),
        (RUNNING, "sums", {}, "Sum.brief needs a runtime"),
        ("__all__ = []", "sums", {}, "exports no Taskset subclass"),
    ],
)
async def test_a_taskset_that_cannot_be_played_is_refused_by_name(
    opens: Open, text: str, name: str, config: dict[str, Any], detail: str
) -> None:
    environment = opens(text, name, **config)
    with pytest.raises(UserError) as caught:
        await environment.ready()
    assert caught.value.problem.reason == "TasksetInvalid"
    assert detail in caught.value.problem.detail
