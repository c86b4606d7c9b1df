"""What the gateway adds to completions of which many are in flight, and what open streams take.

The pods are scripted (``bench.gateway.pods``): vLLM on two cores cannot answer 128 requests a
second. Each completion is held for 2 s give or take a half and carries log-probs and token ids
(``bench.gateway.traffic``). Two baselines of the same requests sent to the pod itself:

* apart: in turns with the gateway's, so that then the machine has one process less to run;
* together: at the same moments, so that both wait for the same cores behind the same processes.

The goal is held to the first. On a machine that does other work the second alone says something.
``--tls`` asks by HTTPS, under quotas that count each request and token and refuse none.

    PYTHONPATH=operator:. python -m bench.gateway.load [--rate 128] [--streams 1000] [--tls]
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import aiohttp
import uvloop
from bench.gateway.pods import pods
from bench.gateway.process import Gateway, gateway, load_average
from bench.gateway.traffic import Load, Route, percentiles, send
from dev.apiserver import ApiServer
from dev.pki import Authority
from dev.ports import free_port
from tests.gateway.process import until

from espalier import identity
from espalier.core.names import adapter_name
from espalier.gateway.certificate import CHAIN, KEY

GOAL_MILLISECONDS = (3.0, 10.0)
GOAL_MIB = 300.0
DIGEST = "sha256:" + "a1" * 32
PATIENCE_SECONDS = 120.0
ROUNDS = 2
# More than any caller here takes, so that all is counted and nothing refused.
QUOTAS = {"ESPALIER_QUOTA_REQUESTS": "100000", "ESPALIER_QUOTA_TOKENS_PER_MINUTE": "1000000000"}


@dataclass(frozen=True)
class Secure:
    """HTTPS of the gateway: its settings, its port, and what its clients trust."""

    settings: Mapping[str, str]
    port: int
    trusted: ssl.SSLContext

    @classmethod
    def under(cls, directory: Path) -> Self:
        """With a certificate of an authority of its own, kept in this directory."""
        authority = Authority("bench")
        for name, content in zip(
            (CHAIN, KEY), authority.issue("gateway", server=True), strict=True
        ):
            (directory / name).write_bytes(content)
        port = free_port()
        settings = {"ESPALIER_TLS_DIRECTORY": str(directory), "ESPALIER_TLS_PORT": str(port)}
        trusted = ssl.create_default_context(cadata=authority.certificate_pem.decode())
        return cls(settings | QUOTAS, port, trusted)


async def concurrency(serving: Gateway, pod: str, load: Load, secure: Secure | None) -> None:
    """Prints what the gateway adds at the percentiles."""
    url, trusted = serving.url, None
    if secure is not None:
        url, trusted = f"https://127.0.0.1:{secure.port}", secure.trusted

    def routes() -> tuple[Route, Route]:
        adapter = adapter_name("arith", DIGEST)
        return Route(url, "arith", serving.headers, trusted), Route(pod, adapter, {})

    in_flight = load.rate * load.hold_seconds
    print(
        f"{in_flight:.0f} completions of {load.tokens} tokens in flight, {load.rate:.0f} a second"
    )
    through, direct = routes()
    used = waited = 0.0
    for _ in range(ROUNDS):
        await send(direct, load=load)
        before = serving.cpu_seconds(), serving.waited_seconds()
        await send(through, load=load)
        used += serving.cpu_seconds() - before[0]
        waited += serving.waited_seconds() - before[1]
    added = compared("apart", through, direct)
    kept = all(a <= goal for a, goal in zip(added, GOAL_MILLISECONDS, strict=True))
    goals = " and ".join(f"{goal:.0f}" for goal in GOAL_MILLISECONDS)
    print(f"  goal: at most {goals} ms added apart: {'kept' if kept else 'missed'}")
    each = 1e3 / through.requests
    print(f"  gateway a request: {used * each:.2f} ms on a core, {waited * each:.2f} ms waiting")
    through, direct = routes()
    for _ in range(ROUNDS):
        await send(through, direct, load=load)
    compared("together", through, direct)


def compared(name: str, through: Route, direct: Route) -> tuple[float, float]:
    """Prints both routes' percentiles and what the gateway adds, which it returns."""
    print(f"  {name}: {len(through.overheads)} through, {len(direct.overheads)} direct")
    for way, route in (("through", through), ("direct", direct)):
        p50, p99 = percentiles(route.overheads)
        late50, late99 = percentiles(route.late)
        print(
            f"    {way:8} p50 {p50:7.2f} ms, p99 {p99:7.2f} ms; "
            f"client late by {late50:.2f} and {late99:.2f} ms"
        )
    columns = percentiles(through.overheads), percentiles(direct.overheads)
    p50, p99 = (a - b for a, b in zip(*columns, strict=True))
    print(f"    added    p50 {p50:7.2f} ms, p99 {p99:7.2f} ms")
    return p50, p99


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
    with tempfile.TemporaryDirectory() as directory:
        secure = Secure.under(Path(directory)) if options.tls else None
        settings = secure.settings if secure else {}
        async with gateway(server, DIGEST, port, key, settings) as serving:
            load = Load(options.rate, options.seconds, options.hold, options.tokens)
            await concurrency(serving, pod, load, secure)
            await streams(serving, options.streams)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=128, help="arrivals a second")
    parser.add_argument("--seconds", type=float, default=15, help="measured, of each round")
    parser.add_argument("--hold", type=float, default=2.0, help="seconds, give or take a half")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--tls", action="store_true", help="by HTTPS, and under quotas")
    print(load_average())
    with ApiServer() as server, pods() as (port, _):
        uvloop.run(run(server, port, parser.parse_args()))


if __name__ == "__main__":
    main()
