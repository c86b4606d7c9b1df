"""What the gateway adds to completions of which many are in flight, and what open streams take.

The pods are scripted (``bench.gateway.pods``): vLLM on two cores cannot answer 128 requests a
second. Each completion is held for 2 s give or take a half, drawn anew, and carries log-probs and
token ids; what a request takes beyond that is overhead, measured through the gateway and without
it, in turns. Client, pod and gateway are a process each and share the machine's cores.

    PYTHONPATH=operator:. python -m bench.gateway.load [--concurrent 256] [--streams 1000]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from dataclasses import dataclass

import aiohttp
from bench.gateway.pods import pods
from bench.gateway.process import Gateway, gateway, load_average
from dev.apiserver import ApiServer
from tests.gateway.process import until

from espalier import identity
from espalier.core.names import adapter_name

GOAL_MILLISECONDS = (3.0, 10.0)
GOAL_MIB = 300.0
DIGEST = "sha256:" + "a1" * 32
PATIENCE_SECONDS = 120.0
ROUNDS = 2


@dataclass(frozen=True)
class Load:
    """How many are in flight, how many each caller sends, how long each is held, its length."""

    concurrent: int
    each: int
    hold_seconds: float
    tokens: int


async def one(session: aiohttp.ClientSession, url: str, model: str, load: Load) -> float:
    """Milliseconds that one completion takes beyond what it is held for."""
    hold = load.hold_seconds * random.uniform(0.5, 1.5)
    message = {"role": "user", "content": f"{random.random()} + 2?"}
    body = {"model": model, "messages": [message], "max_tokens": load.tokens, "hold_seconds": hold}
    body |= {"logprobs": True, "return_token_ids": True}
    began = time.perf_counter()
    async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
        reply.raise_for_status()
        await reply.read()
    return (time.perf_counter() - began - hold) * 1e3


async def many(session: aiohttp.ClientSession, url: str, model: str, load: Load) -> list[float]:
    """Overheads with so many requests always in flight; the first of each caller warms up."""

    async def caller() -> list[float]:
        # Spread out: callers that all start at one moment measure each other.
        await asyncio.sleep(load.hold_seconds * random.random())
        return [await one(session, url, model, load) for _ in range(load.each + 1)][1:]

    found = await asyncio.gather(*(caller() for _ in range(load.concurrent)))
    return [value for values in found for value in values]


async def concurrency(serving: Gateway, pod: str, load: Load) -> None:
    """Prints what the gateway adds at the percentiles."""
    connector = aiohttp.TCPConnector(limit=0)
    through: list[float] = []
    direct: list[float] = []
    async with aiohttp.ClientSession(connector=connector, headers=serving.headers) as session:
        used = 0.0
        for _ in range(ROUNDS):
            direct += await many(session, pod, adapter_name("arith", DIGEST), load)
            before = serving.cpu_seconds()
            through += await many(session, serving.url, "arith", load)
            used += serving.cpu_seconds() - before
    requests = len(through) + ROUNDS * load.concurrent
    rate = load.concurrent / load.hold_seconds
    print(
        f"{load.concurrent} completions of {load.tokens} tokens in flight, {rate:.0f} a second, "
        f"{len(through)} measured each way"
    )
    for name, column in (("through", through), ("direct", direct)):
        p50, p99 = percentiles(column)
        print(f"  {name:8} overhead p50 {p50:6.2f} ms, p99 {p99:6.2f} ms")
    added = [a - b for a, b in zip(percentiles(through), percentiles(direct), strict=True)]
    kept = all(a <= goal for a, goal in zip(added, GOAL_MILLISECONDS, strict=True))
    print(
        f"  added    p50 {added[0]:6.2f} ms, p99 {added[1]:6.2f} ms; goal at most "
        f"{GOAL_MILLISECONDS[0]:.0f} and {GOAL_MILLISECONDS[1]:.0f}: {'kept' if kept else 'missed'}"
    )
    print(f"  gateway processor time {used * 1e3 / requests:.2f} ms a request")


def percentiles(column: list[float]) -> tuple[float, float]:
    """The 50th and the 99th."""
    cuts = statistics.quantiles(column, n=100)
    return cuts[49], cuts[98]


async def streams(serving: Gateway, count: int) -> None:
    """Prints the resident memory while so many streams are open, each with its first event read."""
    idle = serving.resident_mib()
    message = {"role": "user", "content": "1 + 2?"}
    body = {"model": "arith", "messages": [message], "stream": True, "return_token_ids": True}
    body |= {"max_tokens": 1000, "hold_seconds": 1000.0}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=serving.headers) as session:

        async def opened() -> aiohttp.ClientResponse:
            reply = await session.post(f"{serving.url}/v1/chat/completions", json=body)
            reply.raise_for_status()
            await reply.content.readuntil(b"\n\n")
            return reply

        async with asyncio.timeout(PATIENCE_SECONDS):
            replies = await asyncio.gather(*(opened() for _ in range(count)))
        # A second event on each: all of them are still read and passed on.
        await asyncio.gather(*(reply.content.readuntil(b"\n\n") for reply in replies))
        found = serving.resident_mib()
        for reply in replies:
            reply.close()
    kept = "kept" if found <= GOAL_MIB else "missed"
    print(f"{count} streams held open")
    print(f"  gateway resident {found:.0f} MiB, {idle:.0f} before; goal {GOAL_MIB:.0f}: {kept}")


async def run(server: ApiServer, port: int, options: argparse.Namespace) -> None:
    key = identity.generate_private_key()
    pod = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as session:
        await until(session, f"{pod}/healthz", "ok")
    async with gateway(server, DIGEST, port, key) as serving:
        load = Load(options.concurrent, options.each, options.hold, options.tokens)
        await concurrency(serving, pod, load)
        await streams(serving, options.streams)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrent", type=int, default=256)
    parser.add_argument("--each", type=int, default=8, help="completions of each caller and round")
    parser.add_argument("--hold", type=float, default=2.0, help="seconds, give or take a half")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--streams", type=int, default=1000)
    print(load_average())
    with ApiServer() as server, pods() as (port, _):
        asyncio.run(run(server, port, parser.parse_args()))


if __name__ == "__main__":
    main()
