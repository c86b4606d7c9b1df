"""From a committed step to the first token of its weights on every replica.

``espalier dev`` runs the operator, the gateway, a trainer and two vLLM servers over a tiny model.
A step's checkpoint is committed when its directory appears on the volume. An adapter's load by
itself is measured with older checkpoints, which the engines have dropped: a one-token request that
makes every engine load one. A second such request says what the token alone takes.

    PYTHONPATH=operator:. python -m bench.gateway.promotion [--steps 20]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from bench.gateway.process import load_average
from dev.ports import free_port
from tests.local.test_dev import HEAD, MANIFESTS, dev
from tests.sampler.tiny import make_model

from espalier.core.volume import checkpoints_of

REPLICAS = 2
# An engine holds so many (spec.rollout.maxAdapters); older ones are loaded again.
ADAPTERS = 4
GOAL_RATIO, GOAL_SECONDS = 1.2, 0.1
READY_SECONDS = 300.0
SAMPLE = {"prompt_token_ids": [5], "output_token_ids": [6], "output_logprobs": [-5.0]}
BATCH = {"inputs": [{"samples": [SAMPLE], "reward": r} for r in (0.0, 1.0)], "group_size": 2}


@dataclass(frozen=True)
class Moved:
    """Seconds: commit to the answer of optim_step; that answer to a token of every replica."""

    promoted: float
    sampled: float


class Client:
    """Calls the gateway as a user does."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def train(self, command: str, body: object) -> None:
        async with self._session.post(
            f"{self._url}/v1/models/tiny/train/{command}", json=body
        ) as reply:
            assert reply.status == 200, await reply.text()

    async def tokens(self, model: str) -> float:
        """Seconds until every replica has given one token: requests take turns over them."""
        began = time.perf_counter()
        await asyncio.gather(*(self._token(model) for _ in range(REPLICAS)))
        return time.perf_counter() - began

    async def _token(self, model: str) -> None:
        body = {"model": model, "prompt": "1 + 2?", "max_tokens": 1}
        async with self._session.post(f"{self._url}/v1/completions", json=body) as reply:
            assert reply.status == 200, await reply.text()
            await reply.read()

    async def until_every_replica_answers(self) -> None:
        async with asyncio.timeout(READY_SECONDS), self._session.get(f"{self._url}/healthz"):
            answered = 0
            while answered < 3 * REPLICAS:
                try:
                    await self._token("tiny")
                    answered += 1
                except AssertionError:
                    answered = 0
                    await asyncio.sleep(1.0)


async def step(client: Client, checkpoints: Path) -> Moved:
    await client.train("forward-backward", BATCH)
    await client.train("optim-step", {"learning_rate": 1e-3})
    returned = time.time()
    sampled = await client.tokens("tiny")
    return Moved(returned - committed(checkpoints), sampled)


def committed(checkpoints: Path) -> float:
    """When the newest was: the rename of its directory is the last change of the one it is in."""
    return checkpoints.stat().st_mtime


async def loads(client: Client, steps: int) -> list[tuple[float, float]]:
    """Seconds to a token of a checkpoint that no engine holds, on all replicas; and once held."""
    names = [f"tiny@tiny-{number:06d}" for number in range(1, steps - ADAPTERS)]
    return [(await client.tokens(name), await client.tokens(name)) for name in names]


async def measure(directory: Path, model: Path, steps: int) -> None:
    port = free_port()
    async with dev(directory, model, port) as running:
        found = await running.says(r"ESPALIER_GATEWAY_URL=(\S+) ESPALIER_TOKEN=(\S+)")
        await running.says("TrainingRun tiny: Training")
        headers = {"Authorization": f"Bearer {found[2]}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            client = Client(session, found[1])
            await client.until_every_replica_answers()
            checkpoints = checkpoints_of(directory / ".espalier" / "volumes" / "weights", "tiny")
            moves = [await step(client, checkpoints) for _ in range(steps)][1:]
            loaded = await loads(client, steps)
    report(moves, loaded)


def report(moves: list[Moved], loaded: list[tuple[float, float]]) -> None:
    load, held = (statistics.median(column) for column in zip(*loaded, strict=True))
    goal = GOAL_RATIO * load + GOAL_SECONDS
    print(f"{len(moves)} steps, {REPLICAS} replicas, milliseconds (percentiles 10, 50, 90)")
    columns = {
        "commit to the answer of optim_step": [m.promoted for m in moves],
        "that answer to a token of each replica": [m.sampled for m in moves],
        "commit to a token of each replica": [m.promoted + m.sampled for m in moves],
    }
    for name, column in columns.items():
        cuts = [1e3 * cut for cut in statistics.quantiles(column, n=10)]
        kept = "kept" if statistics.median(column) <= goal else "missed"
        print(f"  {name:40} {cuts[0]:7.0f} {cuts[4]:7.0f} {cuts[8]:7.0f}   goal {kept}")
    print(f"  an adapter's load to its first token {load * 1e3:.0f}, a token of one that is held")
    print(
        f"  {held * 1e3:.0f}: the goal is {GOAL_RATIO} x {load * 1e3:.0f} + 100 = {goal * 1e3:.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    print(load_average())
    with tempfile.TemporaryDirectory(prefix="promotion-") as scratch:
        directory, model = Path(scratch) / "manifests", Path(scratch) / "model"
        directory.mkdir()
        manifests = MANIFESTS.replace("replicas: 1", f"replicas: {REPLICAS}")
        (directory / "model.yaml").write_text(manifests)
        (directory / "head.yaml").write_text(HEAD.replace("MODE", "Track"))
        asyncio.run(measure(directory, make_model(model), parser.parse_args().steps))


if __name__ == "__main__":
    main()
