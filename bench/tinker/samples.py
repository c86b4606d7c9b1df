"""What the gateway adds to a sample of Tinker's client: a submission and the poll that awaits it.

The pod is scripted (``bench.gateway.pods``) and holds each completion for the milliseconds that its
``seed`` names. The baseline is the same completion from the pod itself.

* pairs: one sample at a time, in turns with the baseline, held for nothing;
* in flight: 200 futures at once, each held for 2 s give or take a half.

    PYTHONPATH=operator:. python -m bench.tinker.samples [--pairs 300] [--flight 200] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from dataclasses import dataclass

import aiohttp
import uvloop
from bench.gateway.pods import pods
from bench.gateway.process import NAMESPACE, Gateway, gateway, load_average
from bench.gateway.traffic import percentiles
from dev.apiserver import ApiServer
from tests.gateway.process import until

from espalier import identity
from espalier.core.names import adapter_name
from espalier.gateway.tinker import sampling
from espalier.gateway.tinker.bodies import Sample
from espalier.gateway.tinker.names import Sampler, Session
from espalier.gateway.world.world import NamespacedName
from espalier.tinker.messages_pb2 import SampleResponse

GOAL_MILLISECONDS = 4.0
DIGEST = "sha256:" + "a1" * 32
PROMPT, SAMPLED = 256, 128
SAMPLER = Sampler(Session(NAMESPACE, "0" * 16), 0, NamespacedName(NAMESPACE, "arith"), "")


@dataclass
class Ways:
    """Both ways to a sample; each call returns its milliseconds beyond the hold."""

    session: aiohttp.ClientSession
    serving: Gateway
    pod: str
    sent: int = 0

    async def through(self, hold: int) -> float:
        """As the SDK does it: submit, and poll until there is a result."""
        self.sent += 1
        asked = {**_asked(hold), "sampling_session_id": str(SAMPLER), "seq_id": self.sent}
        api, headers = f"{self.serving.url}/api/v1", self.serving.headers
        began = time.perf_counter()
        async with self.session.post(f"{api}/asample", json=asked, headers=headers) as reply:
            reply.raise_for_status()
            promised = await reply.json()
        poll = {"request_id": promised["request_id"], "allow_metadata_only": False}
        while True:
            url = f"{api}/retrieve_future"
            async with self.session.post(url, json=poll, headers=headers) as reply:
                body = await reply.read()
            if reply.status != 408:
                break
        reply.raise_for_status()
        assert SampleResponse.FromString(body).sequences
        return (time.perf_counter() - began) * 1e3 - hold

    async def direct(self, hold: int) -> float:
        """The completion that the gateway asks the pod for."""
        asked = {**_asked(hold), "sampling_session_id": str(SAMPLER), "seq_id": 0}
        body = sampling.completion(Sample.model_validate(asked), 2048)
        body["model"] = adapter_name("arith", DIGEST)
        began = time.perf_counter()
        async with self.session.post(f"{self.pod}/v1/completions", json=body) as reply:
            reply.raise_for_status()
            await reply.read()
        return (time.perf_counter() - began) * 1e3 - hold


def _asked(hold: int) -> dict[str, object]:
    tokens = [random.randrange(300, 49152) for _ in range(PROMPT)]
    return {
        "num_samples": 1,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": tokens}]},
        "sampling_params": {"max_tokens": SAMPLED, "seed": hold},
    }


async def pairs(ways: Ways, count: int) -> None:
    """Prints what one sample at a time takes more through the gateway."""
    for _ in range(20):
        await ways.through(0)
        await ways.direct(0)
    used = ways.serving.cpu_seconds()
    found = [(await ways.through(0), await ways.direct(0)) for _ in range(count)]
    used = (ways.serving.cpu_seconds() - used) / count * 1e3
    added = statistics.median(a - b for a, b in found)
    kept = "kept" if added <= GOAL_MILLISECONDS else "missed"
    through, direct = (statistics.median(column) for column in zip(*found, strict=True))
    print(f"{count} pairs: {through:.2f} ms through, {direct:.2f} ms direct")
    print(f"  added {added:.2f} ms, {used:.2f} ms of the gateway's CPU; goal 4 ms: {kept}")


async def in_flight(ways: Ways, flight: int, rounds: int) -> None:
    """Prints what so many at once take beyond their hold, through and direct."""
    columns = []
    for way in (ways.through, ways.direct):
        column: list[float] = []
        for _ in range(rounds):
            holds = [random.randrange(1000, 3000) for _ in range(flight)]
            column += await asyncio.gather(*map(way, holds))
        columns.append(percentiles(column))
    (p50, p99), (own50, own99) = columns
    print(f"{flight} futures in flight, {rounds} rounds: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    print(f"  beyond the hold; direct p50 {own50:.1f} ms, p99 {own99:.1f} ms")


async def run(server: ApiServer, port: int, options: argparse.Namespace) -> None:
    """Measures both against a gateway of its own."""
    pod = f"http://127.0.0.1:{port}"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        await until(session, f"{pod}/healthz", "ok")
        async with gateway(server, DIGEST, port, identity.generate_private_key()) as serving:
            ways = Ways(session, serving, pod)
            await pairs(ways, options.pairs)
            await in_flight(ways, options.flight, options.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--flight", type=int, default=200, help="futures at once")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(load_average())
    with ApiServer() as server, pods() as (port, _):
        uvloop.run(run(server, port, options))


if __name__ == "__main__":
    main()
