"""Held-out tasks that a user's image plays: a host of its own, from the run's start to its end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.runner.test_loop import Bench, bench

from espalier.api.run.taskset import Taskset
from espalier.cli.heldout_tasks import of_image
from espalier.environments import host
from espalier.runner.run_end import UserError
from espalier.runner.task_source import PlayedTasks

__all__ = ["bench"]

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
    for place in ("host", "host-held"):
        (tmp_path / place).mkdir()
    monkeypatch.setenv("ESPALIER_HOST_SOCKET", str(tmp_path / "host" / "host.sock"))
    socket = tmp_path / "host-held" / "host.sock"
    container = await asyncio.create_subprocess_exec(
        sys.executable, host.__file__, str(socket), cwd=tmp_path
    )
    yield bench
    if container.returncode is None:
        container.kill()
    await container.wait()


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
