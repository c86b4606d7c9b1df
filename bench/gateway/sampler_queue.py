"""What a flood in a sampler's queue costs another caller: a real vLLM behind the real gateway.

A caller sends short requests at random moments: alone; beside another caller's flood, where callers
take turns; and beside a flood of its own, where requests are served as they come. The flood is a
process of its own that keeps so many requests in flight. Rounds of the three take turns, so the
machine's load is in all of them. A flood of 16 fits into vLLM's cache: beside it nothing waits, and
what it costs is the larger batch. Goal: p99 beside another's flood within 1.5 times that alone.

    PYTHONPATH=operator:. python -m bench.gateway.sampler_queue [--floods 16 64 256]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvloop
from bench.gateway.flood import asked, calling
from bench.gateway.pods import ROOT
from bench.gateway.process import NAMESPACE, Gateway, load_average
from bench.gateway.sampler import Volume, before_vllm, tiny_volume
from bench.gateway.traffic import percentiles
from dev.apiserver import ApiServer
from tests.sampler.server import Rollout

from espalier.core.names import GATEWAY_AUDIENCE

GOAL = 1.5
ROUNDS = 3
TOKENS = 16
PATIENCE_SECONDS = 120
WAYS = ("alone", "beside another's", "beside its own")

_IN_VLLM = re.compile(r"^vllm:num_requests_(?:running|waiting){.*} (.*)$", re.MULTILINE)


@asynccontextmanager
async def flooded(url: str, token: str, requests: int, rollout: Rollout) -> AsyncIterator[None]:
    """While a flood goes on; begins once most of it is in vLLM, ends when none is left."""

    async def until(most: float, least: float) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                found = _IN_VLLM.findall(await asyncio.to_thread(rollout.scrape))
                if least <= sum(map(float, found)) <= most:
                    return
                await asyncio.sleep(0.2)

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.gateway.flood", url, token, str(requests)), cwd=ROOT
    )
    try:
        await until(most=requests, least=0.75 * requests)
        yield
        assert process.returncode is None, "the flood ended"
    finally:
        process.kill()
        await process.wait()
        await until(most=0, least=0)


async def sent(url: str, token: str, rate: float, seconds: float) -> list[float]:
    """Milliseconds of each request of one caller; arrivals do not wait for answers."""
    taken: list[float] = []

    async def one() -> None:
        began = time.perf_counter()
        async with session.post(f"{url}/v1/completions", json=asked(TOKENS)) as reply:
            reply.raise_for_status()
            await reply.read()
        taken.append((time.perf_counter() - began) * 1e3)

    ends = time.monotonic() + seconds
    async with calling(token) as session, asyncio.TaskGroup() as flying:
        while time.monotonic() < ends:
            flying.create_task(one())
            await asyncio.sleep(random.expovariate(rate))
    return taken


async def measure(
    serving: Gateway, rollout: Rollout, other: str, options: argparse.Namespace
) -> None:
    """Prints p50 and p99 of each way, and how many times those alone."""
    url, own, load = serving.url, serving.token, (options.rate, options.seconds)
    await sent(url, own, *load)
    for requests in options.floods:
        columns: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            columns["alone"] += await sent(url, own, *load)
            for way, token in (("beside another's", other), ("beside its own", own)):
                async with flooded(url, token, requests, rollout):
                    columns[way] += await sent(url, own, *load)
        report(requests, columns)


def report(requests: int, columns: dict[str, list[float]]) -> None:
    print(f"a flood of {requests}; {load_average()}")
    alone = percentiles(columns["alone"])
    for way, column in columns.items():
        p50, p99 = percentiles(column)
        print(
            f"  {way:17} {len(column):4} requests: p50 {p50:6.0f} ms, p99 {p99:6.0f} ms; "
            f"{p50 / alone[0]:5.1f} and {p99 / alone[1]:5.1f} times alone"
        )
    kept = percentiles(columns["beside another's"])[1] <= GOAL * alone[1]
    print(f"  goal: p99 within {GOAL} times that alone: {'kept' if kept else 'missed'}")


async def run(server: ApiServer, volume: Volume, options: argparse.Namespace) -> None:
    limits = {"ESPALIER_QUOTA_REQUESTS": "0"}
    async with before_vllm(server, volume, limits) as (serving, rollout):
        server.kubectl("create", "serviceaccount", "flood", "-n", NAMESPACE)
        server.kubectl(
            *("create", "clusterrolebinding", "flood", "--clusterrole=cluster-admin"),
            f"--serviceaccount={NAMESPACE}:flood",
        )
        audience = f"--audience={GATEWAY_AUDIENCE}"
        token = server.kubectl("create", "token", "flood", "-n", NAMESPACE, audience).strip()
        await measure(serving, rollout, token, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=4, help="arrivals a second")
    parser.add_argument("--seconds", type=float, default=20, help="of each round")
    parser.add_argument("--floods", type=int, nargs="+", default=[16, 64, 256])
    options = parser.parse_args()
    print(load_average())
    with tiny_volume() as volume, ApiServer() as server:
        uvloop.run(run(server, volume, options))


if __name__ == "__main__":
    main()
