"""What the gateway adds to a one-token request: pairs of the same request through it and direct.

Starts an API server, a tiny model on vLLM and the gateway as processes of their own, so that token
and access reviews, routing and both connections are the real ones.

    PYTHONPATH=operator:. python bench/gateway.py --pairs 500
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp
from dev.apiserver import ApiServer
from tests.gateway.process import apply, manifests, signing_key, started, until
from tests.gateway.test_completions import free_port
from tests.rollout.server import Rollout, start, wait_healthy
from tests.rollout.tiny import commit_adapter, commit_base, make_model

from espalier.core.names import adapter_name

NAMESPACE = "bench"
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


async def measure(url: str, token: str, rollout: Rollout, adapter: str, pairs: int) -> None:
    """Prints percentiles over alternating pairs."""
    through, direct = [], []
    async with aiohttp.ClientSession() as session:
        for pair in range(pairs + WARM_UP):
            inner = rollout.token("gateway")
            pass_on = (url, token, "arith"), (rollout.url, inner, adapter)
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


async def run(server: ApiServer, rollout: Rollout, digest: str, pairs: int) -> None:
    """Starts the gateway and measures."""
    port = int(rollout.url.rsplit(":", 1)[1])
    apply(server, NAMESPACE, *manifests(port, digest), signing_key(rollout.private_key))
    token = server.kubectl("create", "token", "default", "-n", NAMESPACE).strip()
    server.kubectl(
        *("create", "clusterrolebinding", "bench", "--clusterrole=cluster-admin"),
        f"--serviceaccount={NAMESPACE}:default",
    )
    ours = free_port()
    environment = {
        "KUBECONFIG": str(server.kubeconfig),
        "POD_NAMESPACE": NAMESPACE,
        "ESPALIER_PORT": str(ours),
        "ESPALIER_METRICS_PORT": str(free_port()),
    }
    url = f"http://127.0.0.1:{ours}"
    async with started(environment) as process, aiohttp.ClientSession() as session:
        # Its log is read as it is written, or the pipe would fill.
        assert process.stderr is not None
        log = asyncio.create_task(process.stderr.read())
        await until(session, f"{url}/readyz", '{"unready": ""}')
        before = processor_seconds(process.pid)
        await measure(url, token, rollout, adapter_name("arith", digest), pairs)
        used = (processor_seconds(process.pid) - before) * 1e3 / (pairs + WARM_UP)
        # Unlike the times above, this does not depend on what else the machine does.
        print(f"  gateway processor time {used:.2f} ms a request")
        print(f"  gateway resident {resident(process.pid):.0f} MiB")
        process.terminate()
        await process.wait()
        await log


def processor_seconds(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """Resident memory of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    """Starts everything, prints the figures, stops everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ApiServer() as server:
        server.apply_crds()
        server.create_namespace(NAMESPACE)
        volume, model = Path(scratch) / "volume", Path(scratch) / "model"
        base = commit_base(volume, make_model(model))
        digest = commit_adapter(volume, model, base, seed=1)
        rollout = start(volume, base, model="arith", namespace=NAMESPACE)
        try:
            wait_healthy(rollout, 400)
            rollout.serve(adapter_name("arith", digest)).raise_for_status()
            asyncio.run(run(server, rollout, digest, options.pairs))
        finally:
            rollout.stop()


if __name__ == "__main__":
    main()
