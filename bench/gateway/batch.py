"""A forward_backward of 64 trajectories of 2,000 tokens: what it takes outside the trainer.

The trainer is scripted (``bench.gateway.pods``): it reads the command and answers. Beside the
gateway's part, what the trainer itself needs to read and check such a command is printed.

    PYTHONPATH=operator:. python -m bench.gateway.batch [--rounds 20]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time

import aiohttp
from bench.gateway.pods import pods
from bench.gateway.process import Gateway, gateway, load_average
from dev.apiserver import ApiServer
from tests.gateway.process import until

from espalier import identity
from espalier.api.wire.gradients import ForwardBackwardRequest
from espalier.api.wire.trajectory import TrajectoryPayload, TrajectorySample
from espalier.trainer.batch.data import datums
from espalier.trainer.batch.limits import Limits
from espalier.trainer.http.requests import parse

GOAL_MILLISECONDS = 50.0
TRAJECTORIES, PROMPT, OUTPUT, GROUP = 64, 256, 1744, 8
VOCABULARY = 152_000
DIGEST = "sha256:" + "a1" * 32
WARM_UP = 2


def batch() -> ForwardBackwardRequest:
    """Eight groups of eight, every number drawn at random and written in full."""
    source = random.Random(1)

    def tokens(count: int) -> list[int]:
        return [source.randrange(VOCABULARY) for _ in range(count)]

    def sample() -> TrajectorySample:
        logprobs = [-source.expovariate(1.0) for _ in range(OUTPUT)]
        return TrajectorySample(
            prompt_token_ids=tokens(PROMPT),
            output_token_ids=tokens(OUTPUT),
            output_logprobs=logprobs,
        )

    inputs = [
        TrajectoryPayload(samples=[sample()], reward=source.random()) for _ in range(TRAJECTORIES)
    ]
    return ForwardBackwardRequest(inputs=[*inputs], group_size=GROUP)


async def sent(session: aiohttp.ClientSession, url: str, body: bytes) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    async with session.post(f"{url}/forward-backward", data=body) as reply:
        reply.raise_for_status()
        await reply.read()
    return (time.perf_counter() - began) * 1e3


async def measure(serving: Gateway, pod: str, body: bytes, rounds: int) -> None:
    """Prints what the gateway adds and uses."""
    added, used = [], 0.0
    async with aiohttp.ClientSession(headers=serving.headers) as session:
        for number in range(rounds + WARM_UP):
            direct = await sent(session, f"{pod}/train", body)
            before = serving.cpu_seconds()
            through = await sent(session, f"{serving.url}/v1/models/arith/train", body)
            if number >= WARM_UP:
                added.append(through - direct)
                used += serving.cpu_seconds() - before
    p50 = statistics.median(added)
    print(
        f"forward_backward of {TRAJECTORIES} trajectories of 2,000 tokens, {len(body) / 1e6:.1f} MB"
    )
    print(f"  gateway processor time {used * 1e3 / rounds:.1f} ms a call")
    kept = "kept" if p50 <= GOAL_MILLISECONDS else "missed"
    print(f"  added to the call, median {p50:.1f} ms; goal {GOAL_MILLISECONDS:.0f}: {kept}")


def cpu_milliseconds(work: object, rounds: int = 5) -> float:
    """Processor time of one call of ``work``."""
    assert callable(work)
    began = time.process_time()
    for _ in range(rounds):
        work()
    return (time.process_time() - began) * 1e3 / rounds


def around(request: ForwardBackwardRequest, body: bytes) -> None:
    """Prints what client and trainer need for the same command, in processor time."""
    limits = Limits(VOCABULARY, 4096)
    parts = {
        "our client: to JSON": lambda: request.model_dump_json(exclude_none=True),
        "trainer: JSON to a checked request": lambda: parse(ForwardBackwardRequest, body),
        "trainer: request to JSON for the log": request.model_dump_json,
        "trainer: request to datums": lambda: datums(request, limits, policies_compared=True),
    }
    for name, work in parts.items():
        print(f"  {name} {cpu_milliseconds(work):.1f} ms of processor time")


async def run(server: ApiServer, port: int, rounds: int) -> None:
    pod = f"http://127.0.0.1:{port}"
    request = batch()
    body = request.model_dump_json(exclude_none=True).encode()
    async with aiohttp.ClientSession() as session:
        await until(session, f"{pod}/healthz", "ok")
    async with gateway(server, DIGEST, port, identity.generate_private_key()) as serving:
        await measure(serving, pod, body, rounds)
    around(request, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    print(load_average())
    with ApiServer() as server, pods() as (port, _):
        asyncio.run(run(server, port, parser.parse_args().rounds))


if __name__ == "__main__":
    main()
