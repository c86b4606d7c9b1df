"""What one caller's flood costs another: its latency with the flood and without, by percentiles.

The flood is a process of its own with so many connections, each of which sends again as soon as it
is answered and heeds no ``Retry-After``. Goal: the other caller's p99 within 1.5 times. Rounds with
and without take turns, and the machine's load is in both; the gateway's CPU-seconds are not.

    PYTHONPATH=operator:. python -m bench.gateway.fairness [--connections 256] [--requests 64]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvloop
from bench.gateway.pods import ROOT, pods
from bench.gateway.process import NAMESPACE, Gateway, gateway, load_average
from bench.gateway.traffic import Load, Route, percentiles, send
from dev.apiserver import ApiServer
from tests.gateway.process import until

from espalier import identity
from espalier.core.names import GATEWAY_AUDIENCE

GOAL = 1.5
DIGEST = "sha256:" + "a1" * 32
ROUNDS = 3
BODY = {"model": "arith", "messages": [{"role": "user", "content": "1 + 2?"}], "max_tokens": 128}


async def flood(url: str, token: str, connections: int, hold: float) -> None:
    """Sends without a pause until it is killed."""
    headers = {"Authorization": f"Bearer {token}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def again() -> None:
            while True:
                body = {**BODY, "hold_seconds": hold}
                async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
                    await reply.read()

        await asyncio.gather(*(again() for _ in range(connections)))


@asynccontextmanager
async def flooded(serving: Gateway, token: str, options: argparse.Namespace) -> AsyncIterator[None]:
    """While a flood goes on."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.gateway.fairness", "--flood", serving.url, token),
        *("--connections", str(options.connections), "--hold", str(options.hold)),
        cwd=ROOT,
    )
    try:
        # Until it has filled its share.
        await asyncio.sleep(3.0)
        yield
    finally:
        process.kill()
        await process.wait()


async def measure(serving: Gateway, token: str, options: argparse.Namespace) -> None:
    """Prints both columns and their ratios."""
    load = Load(options.rate, options.seconds, options.hold, 128)
    alone = Route(serving.url, "arith", serving.headers)
    beside = Route(serving.url, "arith", serving.headers)
    used, waited = Counter[str](), Counter[str]()

    async def sent(name: str, route: Route) -> None:
        before = serving.cpu_seconds(), serving.waited_seconds()
        await send(route, load=load)
        used[name] += serving.cpu_seconds() - before[0]
        waited[name] += serving.waited_seconds() - before[1]

    await send(Route(serving.url, "arith", serving.headers), load=load)
    for _ in range(ROUNDS):
        await sent("alone", alone)
        async with flooded(serving, token, options):
            await sent("beside", beside)
    seconds = ROUNDS * (load.seconds + 2 * load.hold_seconds)
    figures = {}
    for name, route in (("alone", alone), ("beside", beside)):
        whole = percentiles([over + 1e3 * load.hold_seconds for over in route.overheads])
        figures[name] = (*whole, *percentiles(route.overheads))
        late = percentiles(route.late)[1]
        print(
            f"  {name:7} {len(route.overheads)} requests: p50 {whole[0]:7.1f} ms, "
            f"p99 {whole[1]:7.1f} ms; beyond the sampling p50 {figures[name][2]:.1f} ms, "
            f"p99 {figures[name][3]:.1f} ms; client late by {late:.1f} ms at p99"
        )
        cores = used[name] / seconds, waited[name] / seconds
        print(f"          gateway {cores[0]:.2f} of a core, and {cores[1]:.2f} waiting for one")
    ratio = figures["beside"][1] / figures["alone"][1]
    kept = "kept" if ratio <= GOAL else "missed"
    print(f"  p99 beside a flood: {ratio:.2f} times; goal {GOAL}: {kept}")


async def run(server: ApiServer, port: int, options: argparse.Namespace) -> None:
    async with aiohttp.ClientSession() as session:
        await until(session, f"http://127.0.0.1:{port}/healthz", "ok")
    key = identity.generate_private_key()
    limits = {"ESPALIER_QUOTA_REQUESTS": str(options.requests)}
    async with gateway(server, DIGEST, port, key, limits) as serving:
        server.kubectl("create", "serviceaccount", "flood", "-n", NAMESPACE)
        server.kubectl(
            *("create", "clusterrolebinding", "flood", "--clusterrole=cluster-admin"),
            f"--serviceaccount={NAMESPACE}:flood",
        )
        audience = f"--audience={GATEWAY_AUDIENCE}"
        token = server.kubectl("create", "token", "flood", "-n", NAMESPACE, audience).strip()
        print(f"{options.connections} connections flood, of which {options.requests} are let in")
        await measure(serving, token, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=32, help="arrivals a second")
    parser.add_argument("--seconds", type=float, default=10, help="measured, of each round")
    parser.add_argument("--hold", type=float, default=0.5, help="seconds, give or take a half")
    parser.add_argument("--requests", type=int, default=64, help="of a caller at once; 0: any")
    parser.add_argument("--connections", type=int, default=256, help="of the flood")
    parser.add_argument("--flood", nargs=2, metavar=("URL", "TOKEN"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.flood:
        url, token = options.flood
        uvloop.run(flood(url, token, options.connections, options.hold))
        return
    print(load_average())
    with ApiServer() as server, pods() as (port, _):
        uvloop.run(run(server, port, options))


if __name__ == "__main__":
    main()
