"""``make try`` as a newcomer runs it, with fewer steps: what it shows, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "dev" / "try.sh"
# The first call ever makes the environment and converts the model.
LIMIT_SECONDS = 1200


class Try:
    """A running script and all that it said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""

    async def until(self, text: str) -> None:
        """Reads on until it says so."""
        while text not in self.said:
            assert self.process.stdout is not None
            line = await self.process.stdout.readline()
            assert line, f"ended before {text!r}: {self.said}"
            self.said += line.decode()

    async def end(self) -> int:
        """Its exit code."""
        rest, _ = await self.process.communicate()
        self.said += rest.decode()
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def running(out: Path, **given: str) -> AsyncIterator[Try]:
    process = await asyncio.create_subprocess_exec(
        *("bash", str(SCRIPT)),
        env={**os.environ, "ESPALIER_OUT": str(out), **given},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # A process group of its own is what a terminal sends Ctrl-C to.
        start_new_session=True,
        # A shell cannot trap what was ignored when it started, as it is where tests run with `&`.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            yield Try(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        await process.wait()


def started(logs: Path) -> None:
    """Waits for a log of vLLM's."""
    ends = time.monotonic() + LIMIT_SECONDS
    while not list(logs.glob("*rollout*")):
        assert time.monotonic() < ends
        time.sleep(0.1)


def left_over(out: Path) -> list[str]:
    """Processes that were started for it and still run: its paths are in their environment."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if str(out).encode() in (directory / "environ").read_bytes():
                found.append((directory / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def evaluated(path: Path) -> dict[str, list[str]]:
    """The means that the Checkpoints' metrics have of evaluations."""
    bodies = json.loads(path.read_text())
    found = {
        body["metadata"]["name"]: [
            metric["name"]
            for metric in body["status"].get("metrics", [])
            if metric["name"].startswith("eval/") and metric["name"].endswith("mean_reward")
        ]
        for body in bodies
        if body["kind"] == "Checkpoint"
    }
    return {name: names for name, names in found.items() if names}


@pytest.mark.vllm
@pytest.mark.timeout(LIMIT_SECONDS + 60)
async def test_it_trains_shows_the_tree_compares_and_rolls_back(tmp_path: Path) -> None:
    async with running(tmp_path, TRY_STEPS="3", TRY_QUESTIONS="16") as script:
        await script.until("arith-20 succeeded: step 3/3")
        assert left_over(tmp_path)
        assert await script.end() == 0, script.said
    for shown in (
        r"\* arith-000003 .*> arith",
        r"o base",
        r"reward/mean of arith",
        r"arith@base: mean reward 0\.\d+ on 16 held-out tasks",
        r"arith: mean reward 0\.\d+ on 16 held-out tasks",
        r"served arith-000002 \d+ ms after the edit",
        r"The slug answers exactly as arith-000002 did",
        r"Read next",
    ):
        assert re.search(shown, script.said), f"{shown} is not in: {script.said}"
    assert script.said.count("What is 14 + 13?") == 3
    assert evaluated(tmp_path / "try" / "state" / "objects.json") == {
        "arith-000003": ["eval/held-out/mean_reward"]
    }
    assert (tmp_path / "try" / "reward.png").read_bytes().startswith(b"\x89PNG")
    assert left_over(tmp_path) == []


@pytest.mark.vllm
@pytest.mark.timeout(LIMIT_SECONDS + 60)
async def test_ctrl_c_stops_what_it_started_and_says_where_the_files_are(tmp_path: Path) -> None:
    logs = tmp_path / "try" / "state" / "logs"
    async with running(tmp_path) as script:
        await script.until("The trainer and vLLM start")
        await asyncio.to_thread(started, logs)
        assert left_over(tmp_path)
        os.killpg(script.process.pid, signal.SIGINT)
        assert await script.end() == 130
    assert f"logs in {tmp_path}/try/state/logs" in script.said
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        # There is no second step to go back to.
        ("TRY_STEPS", "1", "TRY_STEPS=1: give a number of at least 3."),
        ("TRY_QUESTIONS", "0", "TRY_QUESTIONS=0: give a number of 1 to 100."),
        ("TRY_QUESTIONS", "101", "TRY_QUESTIONS=101: give a number of 1 to 100."),
    ],
)
async def test_a_number_that_cannot_be_is_refused(
    tmp_path: Path, name: str, value: str, says: str
) -> None:
    async with running(tmp_path, **{name: value}) as script:
        assert await script.end() == 1
    assert f"error: {says}" in script.said
    assert not (tmp_path / "try").exists()
