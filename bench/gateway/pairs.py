"""What the gateway adds to a one-token request: pairs of the same request through it and direct.

Starts an API server, a tiny model on vLLM and the gateway as processes of their own, so that token
and access reviews, routing and both connections are the real ones.

    PYTHONPATH=operator:. python -m bench.gateway.pairs --pairs 500
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time

import aiohttp
from bench.gateway.process import Gateway, load_average
from bench.gateway.sampler import Volume, before_vllm, tiny_volume
from dev.apiserver import ApiServer
from tests.sampler.server import Rollout

GOAL_MILLISECONDS = 3.0
WARM_UP = 20


async def timed(session: aiohttp.ClientSession, url: str, token: str, model: str) -> float:
    """Milliseconds of one one-token completion; its prompt is new, so nothing is cached."""
    body = {"model": model, "prompt": f"{next(_numbers)} + 2?", "max_tokens": 1, "logprobs": 1}
    began = time.perf_counter()
    async with session.post(
        f"{url}/v1/completions", json=body, headers={"Authorization": f"Bearer {token}"}
    ) as reply:
        reply.raise_for_status()
        await reply.read()
    return (time.perf_counter() - began) * 1e3


_numbers = itertools.count(1000)


async def measure(serving: Gateway, rollout: Rollout, adapter: str, pairs: int) -> None:
    """Prints percentiles over alternating pairs."""
    through, direct = [], []
    before = 0.0
    async with aiohttp.ClientSession() as session:
        for pair in range(pairs + WARM_UP):
            if pair == WARM_UP:
                before = serving.cpu_seconds()
            inner = rollout.token("gateway")
            pass_on = (serving.url, serving.token, "arith"), (rollout.url, inner, adapter)
            # Which goes first alternates, so that a drift of the machine favours neither.
            times = [0.0, 0.0]
            for side in (0, 1) if pair % 2 else (1, 0):
                times[side] = await timed(session, *pass_on[side])
            if pair >= WARM_UP:
                through.append(times[0])
                direct.append(times[1])
    added = [a - b for a, b in zip(through, direct, strict=True)]
    ratios = [a / b for a, b in zip(through, direct, strict=True)]
    print(f"{pairs} pairs of one-token requests, milliseconds (percentiles 10, 50, 90)")
    for name, column in (("through", through), ("direct", direct), ("added", added)):
        deciles = statistics.quantiles(column, n=10)
        print(f"  {name:8} {deciles[0]:7.2f} {deciles[4]:7.2f} {deciles[8]:7.2f}")
    print(f"  paired ratio {statistics.median(ratios):.3f}")
    kept = statistics.median(added) <= GOAL_MILLISECONDS
    print(f"  goal: at most {GOAL_MILLISECONDS} added: {'kept' if kept else 'missed'}")
    used = (serving.cpu_seconds() - before) * 1e3 / pairs
    print(f"  gateway processor time {used:.2f} ms a request")
    print(f"  gateway resident {serving.resident_mib():.0f} MiB")


async def run(server: ApiServer, volume: Volume, pairs: int) -> None:
    async with before_vllm(server, volume) as (serving, rollout):
        await measure(serving, rollout, volume.adapter, pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=500)
    options = parser.parse_args()
    print(load_average())
    with tiny_volume() as volume, ApiServer() as server:
        asyncio.run(run(server, volume, options.pairs))


if __name__ == "__main__":
    main()
