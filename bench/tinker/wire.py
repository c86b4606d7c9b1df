"""A forward_backward of Tinker's client: 64 datums of 2,000 tokens, and what is not computing.

    PYTHONPATH=operator:. python -m bench.tinker.wire [--directory VOLUME] [--rounds 5]

The trainer is real, on a model so small that computing is a matter of seconds. The time is that
from the first byte of the command to the last of its result, less the time in which rows were
packed and gradients computed; the trainer's own client is in it, the gateway is not. CPU time is
of the whole process, so it says something on a busy machine too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from aiohttp.test_utils import TestClient, TestServer
from bench.trainer.workload import TINY, policy
from tests.tinker.messages import Explicit, datum, forward_backward
from tests.trainer.test_service import AUDIENCE, KEYS, bearer
from typing_extensions import override

from espalier.api.wire.headers import IDEMPOTENCY_KEY
from espalier.api.wire.trainer import Assignment
from espalier.tinker import messages_pb2 as pb
from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.losses import LossSpec
from espalier.trainer.compute.compute import Added, Batch, LocalCompute
from espalier.trainer.engine.engine import Engine
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.http.service import Service
from espalier.trainer.memory.planner import Cuts
from espalier.trainer.volume.checkpoint_store import CheckpointStore
from espalier.trainer.volume.command_log import CommandLog

GOAL_MILLISECONDS = 60.0
DATUMS, PROMPT, SAMPLED = 64, 256, 1745
MODEL_ID = "0a1b:train:0"
MODEL, BASE = "bench", "sha256:" + "0" * 64


class Timed(LocalCompute):
    """Adds up the seconds in which it packs and computes, on the clock and of CPU."""

    seconds = 0.0
    cpu_seconds = 0.0

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began, cpu_began = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began
            self.cpu_seconds += time.process_time() - cpu_began

    @override
    def admit(self, data: Sequence[Datum], spec: LossSpec | None = None, cuts: Cuts = ()) -> Batch:
        with self._timed():
            return super().admit(data, spec, cuts)

    @override
    def add_loss(
        self, batch: Batch, spec: LossSpec, group_size: int | None, *, tell: bool = False
    ) -> Added:
        with self._timed():
            return super().add_loss(batch, spec, group_size, tell=tell)


def data() -> list[pb.Datum]:
    """Rollouts in groups of eight that share their prompts, as the cookbook sends them."""
    source, made = random.Random(1), []
    for index in range(DATUMS):
        if index % 8 == 0:
            prompt = [source.randrange(TINY.vocabulary) for _ in range(PROMPT)]
        sampled = [source.randrange(TINY.vocabulary) for _ in range(SAMPLED)]
        before = [0] * (PROMPT - 1)
        values = {
            "logprobs": [*before, *(-source.expovariate(0.2) for _ in sampled)],
            "advantages": [*before, *(source.gauss(0, 1) for _ in sampled)],
        }
        made.append(datum(Explicit([*prompt, *sampled[:-1]], [*before, *sampled], values)))
    return made


@dataclass
class Round:
    """Milliseconds of one command: until it was accepted, to compute, beside it, and of CPU."""

    accepted: float
    computing: float
    beside: float
    cpu_beside: float


async def measure(directory: Path, rounds: int) -> list[Round]:
    """Rounds against a trainer of its own on ``directory``."""
    compute = Timed(policy(TINY, torch.float32, torch.device("cpu")))
    store = CheckpointStore(directory, MODEL)
    log = CommandLog(store.model_directory(MODEL))
    state = TrainingState(model=MODEL, base=BASE, compute=compute, store=store, log=log)
    service, batch, measured = Service(KEYS, AUDIENCE), data(), []
    async with TestClient(TestServer(service.app())) as client:
        await service.start(lambda publish: Engine(state, publish))
        assigned = Assignment(term=1, branch="main", run="default/bench").model_dump_json()
        (await client.post("/assign", data=assigned, headers=bearer("operator"))).raise_for_status()
        for seq in range(1, rounds + 1):
            body = forward_backward(seq, batch)
            headers = bearer() | {IDEMPOTENCY_KEY: f"{MODEL_ID}/{seq}"}
            compute.seconds = compute.cpu_seconds = 0.0
            began, cpu_began = time.perf_counter(), time.process_time()
            sent = await client.post("/train/tinker/forward-backward", data=body, headers=headers)
            accepted = time.perf_counter() - began
            assert sent.status == 202, await sent.text()
            while True:
                path = f"/train/tinker/results/{MODEL_ID}/{seq}?wait=25"
                answer = await client.get(path, headers=bearer())
                result = await answer.read()
                if answer.status != 408:
                    break
            beside = time.perf_counter() - began - compute.seconds
            cpu_beside = time.process_time() - cpu_began - compute.cpu_seconds
            assert pb.ForwardBackwardOutput.FromString(result).metrics["loss:sum"]
            seconds = (accepted, compute.seconds, beside, cpu_beside)
            measured.append(Round(*(1e3 * value for value in seconds)))
        await service.stop(client.app)
    log.close()
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, help="on the volume to measure")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = len(forward_backward(1, data()))
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        found = asyncio.run(measure(Path(directory), options.rounds))
    print(f"{DATUMS} datums of {PROMPT + SAMPLED - 1} tokens, {size / (1 << 20):.1f} MiB:")
    for name in ("accepted", "computing", "beside", "cpu_beside"):
        values = [getattr(one, name) for one in found]
        print(f"  {name}: {statistics.median(values):.0f} ms, at least {min(values):.0f}")
    print(f"goal: {GOAL_MILLISECONDS:.0f} ms beside computing; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
