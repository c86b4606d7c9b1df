"""The runner as a process: its environment, its exit codes, its last words."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from dev.ports import free_port
from tests.runner.standin import StandIn

SUMS = {
    "seed": 1,
    "size": 8,
    "reasoningGym": {"dataset": "chain_sum"},
    "answerExtraction": "LastNumber",
}


class Process:
    """Starts runners against a stand-in."""

    def __init__(self, gateway: StandIn, url: str, token: Path) -> None:
        self.gateway = gateway
        self.environment = {
            "ESPALIER_RUN": "default/run",
            "ESPALIER_MODEL": "tiny",
            "ESPALIER_GATEWAY_URL": url,
            "ESPALIER_TOKEN_FILE": str(token),
        }

    async def start(self, **changes: str) -> asyncio.subprocess.Process:
        inherited = {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore", "-m", "espalier.runner"),
            env={**inherited, **self.environment, **changes},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, **changes: str) -> tuple[int, list[dict[str, Any]], str]:
        """Exit code, the log, and what it wrote to stdout."""
        started = await self.start(**changes)
        out, errors = await started.communicate()
        assert started.returncode is not None
        return started.returncode, events(errors), out.decode()


def events(log: bytes) -> list[dict[str, Any]]:
    """The runner's own lines; scoring workers, which cannot log, print warnings in between."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith(b"{")]
    return [line for line in lines if line["logger"] == "espalier.runner"]


async def first_event(started: asyncio.subprocess.Process) -> dict[str, Any]:
    assert started.stderr is not None
    async with asyncio.timeout(120):
        while not (found := events(await started.stderr.readline())):
            pass
    return found[0]


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    token = tmp_path / "token"
    token.write_text("from-the-kubelet\n")
    gateway = StandIn(taskset=SUMS)
    gateway.answer = lambda prompt, index: "none" if index else str(_sum(prompt))
    async with TestServer(gateway.app()) as running:
        yield Process(gateway, str(running.make_url("/")), token)


def _sum(prompt: str) -> int:
    terms = prompt.rpartition(":")[2].removesuffix("=").split()
    signs = [1, *(1 if sign == "+" else -1 for sign in terms[1::2])]
    return sum(sign * int(term) for sign, term in zip(signs, terms[::2], strict=True))


async def test_a_run_ends_with_0_and_a_line_a_step(process: Process) -> None:
    code, journal, _ = await process.run()
    assert code == 0, journal
    steps = [line for line in journal if line["event"] == "step"]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in journal)
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert all(line["metrics"]["rollout/reward/mean"] == 0.25 for line in steps)
    assert {line["run"] for line in journal} == {"default/run"}
    assert process.gateway.tokens[0] == "Bearer from-the-kubelet"


async def test_tasks_that_need_the_hash_seed_get_it(process: Process) -> None:
    process.gateway.spec |= {
        "taskset": {
            "seed": 1,
            "size": 2,
            "reasoningGym": {"dataset": "ransom_note"},
            "answerExtraction": "Whole",
        },
        "steps": 1,
    }
    process.gateway.answer = lambda prompt, index: str(bool(index))
    code, journal, _ = await process.run(PYTHONHASHSEED="random")
    assert code == 0, journal


async def test_a_users_mistake_ends_with_64_and_says_what_to_mend(process: Process) -> None:
    process.gateway.spec["taskset"] = {"seed": 1, "reasoningGym": {"dataset": "chain_sun"}}
    code, journal, left = await process.run()
    assert code == 64
    assert json.loads(left)["reason"] == "TasksetInvalid"
    assert journal[-1]["event"] == "failed"
    assert journal[-1]["reason"] == "TasksetInvalid"
    assert journal[-1]["remedy"].startswith("Did you mean: chain_sum")


async def test_a_fault_of_the_system_ends_with_75_to_be_tried_again(process: Process) -> None:
    process.gateway.fail("state", 409)
    code, journal, _ = await process.run()
    assert code == 75
    assert "Status409" in journal[-1]["detail"]


async def test_a_terminated_runner_ends_at_once(process: Process) -> None:
    process.gateway.suspended = True
    started = await process.start()
    assert (await first_event(started))["reason"] == "Suspended"
    started.send_signal(signal.SIGTERM)
    _, rest = await asyncio.wait_for(started.communicate(), 60)
    assert started.returncode == 128 + signal.SIGTERM
    assert events(rest)[-1]["event"] == "terminated"


async def test_metrics_are_served_and_a_port_that_is_taken_is_no_obstacle(
    process: Process,
) -> None:
    process.gateway.suspended = True
    port = free_port()
    first = await process.start(ESPALIER_METRICS_PORT=str(port))
    await first_event(first)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/metrics") as answer,
    ):
        assert 'espalier_runner_waits_total{reason="Suspended"}' in await answer.text()
    second = await process.start(ESPALIER_METRICS_PORT=str(port))
    assert (await first_event(second))["reason"] == "Suspended"
    for started in (first, second):
        started.send_signal(signal.SIGTERM)
        await asyncio.wait_for(started.communicate(), 60)


async def test_a_runner_is_terminated_while_an_answer_hangs(process: Process) -> None:
    process.gateway.spec["taskset"] = {
        "seed": 1,
        "size": 8,
        "scoreTimeoutSeconds": 600,
        "reasoningGym": {"dataset": "countdown"},
        "answerExtraction": "Whole",
    }
    process.gateway.answer = lambda prompt, index: "9**9**9**9"
    answered = asyncio.Event()
    process.gateway.hooks["chat"] = answered.set
    started = await process.start()
    assert (await first_event(started))["event"] == "tasks-opened"
    await asyncio.wait_for(answered.wait(), 60)
    # By now the scorer has the answers, or soon will: each takes 600 s.
    await asyncio.sleep(1)
    started.send_signal(signal.SIGTERM)
    _, rest = await asyncio.wait_for(started.communicate(), 60)
    assert started.returncode == 128 + signal.SIGTERM
    assert events(rest)[-1]["event"] == "terminated"


async def test_an_answer_does_not_end_the_runner(process: Process) -> None:
    answers = ("exit()", "__import__('os')._exit(0)", "__import__('os').kill(1, 15)")
    process.gateway.spec["taskset"] = {
        "seed": 1,
        "size": 8,
        "reasoningGym": {"dataset": "spiral_matrix"},
        "answerExtraction": "Whole",
    }
    process.gateway.answer = lambda prompt, index: answers[index % 3]
    code, journal, _ = await process.run()
    assert code == 64
    assert journal[-1]["reason"] == "RewardsUninformative"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ESPALIER_MODEL": "", "ESPALIER_TOKEN_FILE": ""},
            "ESPALIER_MODEL is not set; ESPALIER_TOKEN_FILE is not set",
        ),
        ({"ESPALIER_RUN": "run"}, "ESPALIER_RUN is 'run'"),
    ],
)
async def test_a_wrong_environment_is_named(
    process: Process, change: dict[str, str], message: str
) -> None:
    code, journal, last_words = await process.run(**change)
    assert code == 64
    assert message in journal[-1]["detail"]
    assert json.loads(last_words)["reason"] == "InvalidSettings"
