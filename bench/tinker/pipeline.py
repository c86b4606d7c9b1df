"""How busy Tinker's client keeps a trainer that is sent the next step before the last is told.

    PYTHONPATH=operator:. python -m bench.tinker.pipeline [--steps 20] [--datums 32]

Each step is a forward_backward and an optim_step; the client submits those of the next before it
awaits the results of one, as the cookbook's pipelined loops do. Idle is the part of the time, from
the first command to the last, in which the trainer's engine works on none. The trainer is real, on
a small model; its HTTP client is in the time, the gateway is not.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from aiohttp.test_utils import TestClient, TestServer
from bench.trainer.workload import TINY, policy
from tests.tinker.messages import Explicit, datum, forward_backward
from tests.trainer import tinker
from tests.trainer.test_service import AUDIENCE, KEYS, bearer

from espalier.api.wire.headers import IDEMPOTENCY_KEY
from espalier.api.wire.trainer import Assignment
from espalier.tinker import messages_pb2 as pb
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine import queue
from espalier.trainer.engine.engine import Engine
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.http.service import Service
from espalier.trainer.volume.checkpoint_store import CheckpointStore
from espalier.trainer.volume.command_log import CommandLog

GOAL_IDLE = 0.05
PROMPT, SAMPLED = 128, 385
MODEL_ID = "0a1b:train:0"
MODEL, BASE = "bench", "sha256:" + "0" * 64


@dataclass
class Busy:
    """When the engine worked on commands, in seconds of the clock."""

    seconds: float = 0.0
    first: float = 0.0
    last: float = 0.0

    def turn(self, engine: Engine) -> queue.Turn:
        """A turn of the queue; one that answers no command counts for nothing."""
        began = time.perf_counter()
        turn = _take_turn(engine)
        if turn.answered is not None:
            self.last = time.perf_counter()
            self.first = self.first or began
            self.seconds += self.last - began
        return turn

    @property
    def idle(self) -> float:
        """The part of the time that no command was worked on."""
        return 1 - self.seconds / (self.last - self.first)


_take_turn = queue.take_turn


def data(count: int, seed: int) -> list[pb.Datum]:
    """Texts to be learnt, which share no prompt."""
    source, made = random.Random(seed), []
    for _ in range(count):
        tokens = [source.randrange(TINY.vocabulary) for _ in range(PROMPT + SAMPLED)]
        weights = [0.0] * (PROMPT - 1) + [1.0] * SAMPLED
        made.append(datum(Explicit(tokens[:-1], tokens[1:], {"weights": weights})))
    return made


class Client:
    """Sends commands by number, and awaits their results."""

    def __init__(self, http: TestClient) -> None:  # type: ignore[type-arg]
        self._http = http

    async def submit(self, kind: str, seq: int, body: bytes) -> int:
        headers = bearer() | {IDEMPOTENCY_KEY: f"{MODEL_ID}/{seq}"}
        sent = await self._http.post(f"/train/tinker/{kind}", data=body, headers=headers)
        assert sent.status == 202, await sent.text()
        return seq

    async def result(self, seq: int) -> None:
        path = f"/train/tinker/results/{MODEL_ID}/{seq}?wait=25"
        while True:
            answer = await self._http.get(path, headers=bearer())
            body = await answer.read()
            if answer.status != 408:
                break
        assert answer.status == 200 and b'"error"' not in body, body[:400]


async def measure(directory: Path, steps: int, datums: int) -> Busy:
    """Steps against a trainer of its own on ``directory``."""
    compute = LocalCompute(policy(TINY, torch.float32, torch.device("cpu")))
    store = CheckpointStore(directory, MODEL)
    log = CommandLog(store.model_directory(MODEL))
    state = TrainingState(model=MODEL, base=BASE, compute=compute, store=store, log=log)
    service, busy = Service(KEYS, AUDIENCE), Busy()
    queue.take_turn = busy.turn
    async with TestClient(TestServer(service.app())) as http:
        await service.start(lambda publish: Engine(state, publish))
        assigned = Assignment(term=1, branch="main", run="default/bench").model_dump_json()
        (await http.post("/assign", data=assigned, headers=bearer("operator"))).raise_for_status()
        client, ahead = Client(http), [0]
        for step in range(steps):
            seq = 2 * step + 1
            batch = data(datums, step)
            gradients = forward_backward(seq, batch, "cross_entropy", model_id=MODEL_ID)
            await client.submit("forward-backward", seq, gradients)
            adam = tinker.optim_step(seq + 1, MODEL_ID, learning_rate=1e-4)
            ahead.append(await client.submit("optim-step", seq + 1, adam))
            if ahead[-2]:
                await client.result(ahead[-2] - 1)
                await client.result(ahead[-2])
        await client.result(ahead[-1])
        await service.stop(http.app)
    log.close()
    return busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, help="on the volume to measure")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--datums", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        busy = asyncio.run(measure(Path(directory), options.steps, options.datums))
    wall = busy.last - busy.first
    kept = "kept" if busy.idle <= GOAL_IDLE else "missed"
    print(f"{options.steps} steps of {options.datums} datums of {PROMPT + SAMPLED - 1} tokens")
    print(f"  {wall / options.steps * 1e3:.0f} ms a step, idle {busy.idle:.1%}; goal 5 %: {kept}")
    print(f"  load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
