"""Completions that arrive at random moments, sent by a client that takes little of the machine.

Arrivals do not wait for answers, as those of many callers do not. What a request takes beyond the
time that its pod held it is overhead. It counts from the moment of writing: a client that is late
itself is not the gateway's, and its lateness is a column of its own.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bench.gateway.pods import HELD

PATH = "/v1/chat/completions"
_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Load:
    """Arrivals a second, for how long, how long each is held give or take a half, its length."""

    rate: float
    seconds: float
    hold_seconds: float
    tokens: int


@dataclass
class Route:
    """A server, the model as it is called there, and what its completions took in milliseconds.

    ``trusted`` is what an ``https`` URL is checked with.
    """

    url: str
    model: str
    headers: Mapping[str, str]
    trusted: ssl.SSLContext | None = None
    overheads: list[float] = field(default_factory=list)
    # Between the due moment of an arrival and its sending: the client's own.
    late: list[float] = field(default_factory=list)
    requests: int = 0
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)


async def send(*routes: Route, load: Load) -> None:
    """Sends this load to each of the routes at once; the first two holds of time warm up."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    measured = began + 2 * load.hold_seconds
    due = dict.fromkeys(range(len(routes)), began)
    async with asyncio.TaskGroup() as flying:
        while (now := min(due.values())) < measured + load.seconds:
            chosen = min(due, key=due.__getitem__)
            await asyncio.sleep(now - loop.time())
            route = routes[chosen]
            if now >= measured:
                route.late.append((loop.time() - now) * 1e3)
            flying.create_task(_one(route, load, counted=now >= measured))
            due[chosen] += random.expovariate(load.rate)
    for route in routes:
        for _, writer in route.idle:
            writer.close()
        route.idle.clear()


async def _one(route: Route, load: Load, *, counted: bool) -> None:
    server = urlsplit(route.url)
    reader, writer = (
        route.idle.pop()
        if route.idle
        else await asyncio.open_connection(
            server.hostname, server.port, limit=2**20, ssl=route.trusted
        )
    )
    began = time.perf_counter()
    writer.write(_request(route, load))
    head = await reader.readuntil(_END)
    fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:-2])
    answer = await reader.readexactly(int(fields[b"content-length"]))
    spent = time.perf_counter() - began
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise RuntimeError(f"{route.url} answered {head.decode()}")
    route.idle.append((reader, writer))
    route.requests += 1
    if counted:
        held = float(answer.rpartition(f'"{HELD}":'.encode())[2].removesuffix(b"}"))
        route.overheads.append((spent - held) * 1e3)


def _request(route: Route, load: Load) -> bytes:
    hold = load.hold_seconds * random.uniform(0.5, 1.5)
    message = {"role": "user", "content": f"{random.random()} + 2?"}
    asked = {"model": route.model, "messages": [message], "max_tokens": load.tokens}
    asked |= {"hold_seconds": hold, "logprobs": True, "return_token_ids": True}
    body = json.dumps(asked).encode()
    headers = {"Host": "bench", "Content-Type": "application/json", **route.headers}
    lines = [f"POST {PATH} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def percentiles(column: list[float]) -> tuple[float, float]:
    """The 50th and the 99th."""
    cuts = statistics.quantiles(column, n=100)
    return cuts[49], cuts[98]
