"""Held-out tasks that a user's image plays: a host of its own, from the run's start to its end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.environments.packages import VERIFIERS, interpreter
from tests.environments.test_verifiers import SUMS
from tests.runner.bench import Bench
from tests.runner.standin import half_right

from espalier.api.run.taskset import Taskset
from espalier.cli.heldout_tasks import of_image
from espalier.environments import host
from espalier.runner.run_end import UserError
from espalier.runner.task_source import PlayedTasks

GAME = """
def tasks(seed, size):
    for number in range(size):
        yield {"id": f"{seed}-{number}", "prompt": f"{number}="}

async def rollout(task, session):
    turn = await session.say(task["prompt"])
    return float(turn.text == task["prompt"][0])
"""
PYTHON = {"image": "game:1", "tasks": "game:tasks", "rollout": "game:rollout"}


def held_out(**changes: Any) -> dict[str, Any]:
    taskset = {"seed": 9, "size": 3, "python": PYTHON}
    return {"name": "held", "taskset": taskset, "everySteps": 1, "at": ["Start", "End"], **changes}


@pytest.fixture
async def beside(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    """The bench in a pod with the container of evaluation ``held``."""
    (tmp_path / "game.py").write_text(GAME)
    async with container(sys.executable, tmp_path, monkeypatch):
        yield bench


@asynccontextmanager
async def container(
    python: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[None]:
    """The container of evaluation ``held`` with this Python, whose modules are in the folder."""
    for place in ("host", "host-held"):
        (folder / place).mkdir()
    monkeypatch.setenv("ESPALIER_HOST_SOCKET", str(folder / "host" / "host.sock"))
    socket = folder / "host-held" / "host.sock"
    process = await asyncio.create_subprocess_exec(python, host.__file__, str(socket), cwd=folder)
    try:
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_every_checkpoint_plays_the_same_tasks_on_one_host(beside: Bench) -> None:
    beside.gateway.spec |= {"evaluation": [held_out()], "steps": 2}
    await beside.drive()
    found = beside.gateway.evaluations
    assert [name for name, _ in sorted(found)] == ["run", "tiny-000001", "tiny-000002"]
    assert {one["tasks"] for one in found.values()} == {3}
    assert {one["metrics"]["mean_reward"] for one in found.values()} == {1.0}
    played = [
        sample
        for sample in beside.gateway.samples
        if sample["max_tokens"] and "prompt_cache_key" in sample
    ]
    assert len(played) == 9


@pytest.mark.packages
async def test_a_taskset_of_verifiers_is_asked_of_every_checkpoint(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sums.py").write_text(SUMS)
    source = {"image": "sums:1", "id": "sums", "config": {"most": 4}}
    taskset = {"seed": 9, "size": 4, "verifiers": source}
    bench.gateway.spec |= {"evaluation": [held_out(taskset=taskset)], "steps": 2}
    # The sum of 1, as a digit; of others it is wrong, and brief.
    bench.gateway.answer = lambda prompt, index: "2" if "+" in prompt else half_right(prompt, index)
    async with container(interpreter(VERIFIERS), tmp_path, monkeypatch):
        await bench.drive()
    found = bench.gateway.evaluations
    assert [name for name, _ in sorted(found)] == ["run", "tiny-000001", "tiny-000002"]
    for one in found.values():
        assert one["tasks"] == 4
        # Its rewards, weighted: 0.25 for each brief answer, 0.75 for the one that is right.
        assert one["metrics"]["mean_reward"] == pytest.approx(0.25 + 0.75 / 4)


async def test_functions_that_cannot_be_used_end_the_run_before_it_trains_long(
    beside: Bench,
) -> None:
    functions = {**PYTHON, "tasks": "game:absent"}
    taskset = {"seed": 9, "size": 3, "python": functions}
    beside.gateway.spec |= {"evaluation": [held_out(taskset=taskset, at=["End"])], "steps": 500}
    with pytest.raises(UserError, match=r"taskset\.python.*absent"):
        await beside.drive()
    assert beside.gateway.run_step < 500


async def test_a_run_that_an_image_plays_is_evaluated_by_its_modules_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "game.py").write_text(GAME)
    monkeypatch.chdir(tmp_path)
    training = Taskset.model_validate({"seed": 1, "size": 8, "python": PYTHON})
    with pytest.raises(UserError, match="is the seed that the run trains on"):
        of_image(training, 1, 2)
    found = of_image(training, 2, 2)
    assert isinstance(found.tasks, PlayedTasks)
    try:
        await found.tasks.ready()
        ids = [found.tasks.task(index).id for index in range(found.tasks.size)]
        assert ids == ["python/game:tasks/2-0", "python/game:tasks/2-1"]
    finally:
        await found.tasks.close()
