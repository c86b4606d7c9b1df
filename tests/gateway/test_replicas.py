"""Rollouts of several turns while their replicas, which are real processes, come and go."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from dev.ports import free_port
from tests.gateway.conftest import Gateway
from tests.gateway.world import digest

from espalier.client import GatewayClient, Patience
from espalier.gateway.world.world import NamespacedName
from espalier.loop.job import Job
from espalier.loop.session import Session

# Answers a chat as vLLM does, with the name of the process as the text.
SERVER = """
import asyncio, os, sys
from aiohttp import web

async def chat(request):
    body = await request.json()
    await asyncio.sleep(0.02)
    ids = [ord(c) for c in str(os.getpid())]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": str(os.getpid())},
        "finish_reason": "stop",
        "logprobs": {"content": [{"token": "", "logprob": -0.5} for _ in ids]},
        "token_ids": ids,
        "prompt_token_ids": body.get("prompt_token_ids") or [1],
    }
    return web.json_response({"model": body["model"], "choices": [choice]})

app = web.Application()
app.router.add_post("/v1/chat/completions", chat)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""


@dataclass(frozen=True)
class Task:
    id: str


@asynccontextmanager
async def replica(port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, str(port))
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def show(gateway: Gateway, model: NamespacedName, name: str, port: int) -> None:
    gateway.world.pod(model, name, ip="127.0.0.1", port=port)


async def test_rollouts_go_on_while_replicas_are_added_and_taken_away(gateway: Gateway) -> None:
    model = gateway.world.model("arith")
    gateway.world.head(model, digest("a1"), step=1)
    ports = [free_port() for _ in range(3)]
    played = 0
    halfway = asyncio.Event()

    async def talk(task: Task, session: Session) -> float:
        nonlocal played
        for turn in range(6):
            await session.say(f"{task.id} turn {turn}")
        played += 1
        if played >= 24:
            halfway.set()
        return 1.0

    async with replica(ports[0]) as first, replica(ports[1]) as second, replica(ports[2]) as third:
        for number in (0, 1):
            show(gateway, model, f"arith-rollout-{number}", ports[number])
        client = GatewayClient(
            str(gateway.server.make_url("/")),
            str(model),
            gateway.users.trainer,
            patience=Patience(deadline=60.0, first_delay=0.01, longest_delay=0.1),
        )
        async with client:
            job: Job[Task] = Job(client, talk, group=4, max_concurrent=16)
            running = asyncio.ensure_future(job.run([Task(f"task-{n}") for n in range(16)]))
            await halfway.wait()
            show(gateway, model, "arith-rollout-2", ports[2])
            os.kill(first.pid, signal.SIGKILL)
            await first.wait()
            # As in a cluster, the dead one is offered for a moment longer.
            await asyncio.sleep(0.1)
            gateway.world.drop("Pod", "arith-rollout-0")
            batch = await running
        names = {str(process.pid): n for n, process in enumerate((first, second, third))}
    rollouts = batch.rollouts
    assert [r.error for r in rollouts if r.hindrance] == []
    by_turn = [[names[turn.text] for turn in rollout.turns] for rollout in rollouts]
    assert {len(turns) for turns in by_turn} == {6}
    # A conversation moves only when its replica dies, or when the new one takes its key over.
    moves = Counter(sum(a != b for a, b in itertools.pairwise(t)) for t in by_turn)
    assert max(moves) <= 2
    assert moves[0] > len(rollouts) / 2
    assert {n for turns in by_turn for n in turns} == {0, 1, 2}
    # All of a group that was played before, on one.
    places = [{names[turn.text] for r in group for turn in r.turns} for group in batch.groups[:4]]
    assert all(len(place) == 1 for place in places)
