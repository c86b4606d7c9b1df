"""Every cookbook as a user runs it: its own process, a fresh model, a reward that rises."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from dev.ports import free_port
from dev.tiny_model import make
from tests.local.test_dev import dev

COOKBOOKS = Path(__file__).parents[2] / "examples" / "cookbooks"
IMAGE = "localhost:5000/espalier/cookbook-model:1"
# The rest of the files are what these share.
SCRIPTS = (
    "arithmetic",
    "custom_loss",
    "play_2048",
    "self_play",
    "warm_up",
    "change_of_reward",
)


@dataclass(frozen=True)
class Ended:
    """A script's end: its exit code, and all that it said."""

    code: int | None
    said: str


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base that every script trains."""
    return make(tmp_path_factory.mktemp("model"), spread=0.2)


async def _run(script: str, model: Path, work: Path) -> Ended:
    manifests = work / "manifests"
    shutil.copytree(COOKBOOKS / "manifests", manifests)
    async with dev(manifests, model, free_port(), image=IMAGE) as running:
        found = await running.says(r"ESPALIER_GATEWAY_URL=(\S+) ESPALIER_TOKEN=(\S+)")
        await running.says("TrainingRun tiny: AwaitingClient")
        access = {"ESPALIER_GATEWAY_URL": found[1], "ESPALIER_TOKEN": found[2]}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(COOKBOOKS / f"{script}.py")),
            env={**os.environ, **access, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
    kept = Path("out") / "cookbooks"
    kept.mkdir(parents=True, exist_ok=True)
    (kept / f"{script}.txt").write_text(said.decode())
    return Ended(process.returncode, said.decode())


# `make test` has test_try.py train on arithmetic's task and test_agents.py on play_2048's.
@pytest.mark.exhaustive
@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.parametrize("script", SCRIPTS)
async def test_the_reward_of_a_cookbook_rises(script: str, model: Path, tmp_path: Path) -> None:
    end = await _run(script, model, tmp_path)
    assert end.code == 0, end.said
    assert "step" in end.said


def test_every_script_is_run() -> None:
    mains = {p.stem for p in COOKBOOKS.glob("*.py") if '__name__ == "__main__"' in p.read_text()}
    assert mains == set(SCRIPTS)
