"""Ten thousand Checkpoints of twenty models on a real API server: what the operator takes.

    python -m bench.operator.scale --models 20 --checkpoints 10000
CPU is the operator's own; the API server runs beside it and shares its cores.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from bench.operator.process import OperatorProcess, Reading, api_server, cold_start, operator
from dev.apiserver import ApiServer

from espalier.api.wire.commits import Commit
from espalier.core.checkpoints.commits import checkpoint_body
from espalier.core.lineage.lineage import Point
from espalier.core.names import MAIN, checkpoint_name
from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.objects import Body

NAMESPACE = "scale"
LISTED = "listed"
FEW = 100
TOUCHED = 200
CALLS_AT_ONCE = 8
METRICS = 20
SPEC: Body = {
    "source": {"base": {"image": "registry.example/tiny:1"}},
    "rollout": {"replicas": 0},
    "storage": {"persistentVolumeClaim": {"claimName": "weights"}},
}
RESOLVED = {"uri": "volume://bases/tiny", "revision": "1", "digest": f"sha256:{'a' * 64}"}


def checkpoint(namespace: str, model: str, step: int) -> Body:
    """A Checkpoint as the operator makes it of a commit."""
    parent = checkpoint_name(model, MAIN, step - 1) if step > 1 else ""
    commit = Commit(
        index=step,
        name=checkpoint_name(model, MAIN, step),
        model=model,
        run="r/uid",
        step=step,
        run_step=step,
        branch=MAIN,
        term=1,
        parent=_digest(parent) if parent else "",
        parent_name=parent,
        digest=_digest(checkpoint_name(model, MAIN, step)),
        size_bytes=37_000_000,
        lora_rank=16,
        learning_rate=1e-4,
        group_size=8,
        loss="importance_sampling",
        metrics={
            "rollout/reward/mean": 0.5,
            **{f"policy/metric_{n}": 0.123456 for n in range(METRICS)},
        },
        created="2026-01-01T00:00:00Z",
    )
    return checkpoint_body(commit, namespace, Point(parent, step - 1, commit.parent))


def _digest(name: str) -> str:
    return "sha256:" + name.encode().hex().ljust(64, "0")[-64:]


async def at_once(calls: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """All calls, a few at a time."""
    free = asyncio.Semaphore(CALLS_AT_ONCE)

    async def one(call: Callable[[], Awaitable[object]]) -> None:
        async with free:
            await call()

    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(one(call))


class Scale:
    """The measurement, step by step."""

    def __init__(self, server: ApiServer, cluster: KubernetesCluster, models: int) -> None:
        self._server = server
        self._cluster = cluster
        self._models = [f"model-{n:02d}" for n in range(models)]

    async def populate(self) -> None:
        for name in self._models:
            metadata = {"name": name, "namespace": NAMESPACE}
            await self._cluster.create("TrainableModel", {"metadata": metadata, "spec": SPEC})
            status = {"resolved": RESOLVED}
            await self._cluster.apply_status(
                "TrainableModel", {"metadata": metadata, "status": status}
            )

    async def grow(self, first: int, last: int) -> None:
        """Steps of every model, in their order."""
        steps = [(m, step) for step in range(first, last + 1) for m in self._models]
        bodies = [checkpoint(NAMESPACE, *one) for one in steps]
        await at_once(partial(self._cluster.create, "Checkpoint", body) for body in bodies)

    async def touch(self, running: OperatorProcess, steps: int, word: str) -> float:
        """CPU milliseconds of the operator for an event of a Checkpoint that changes nothing."""
        before = await running.settled()
        names = [
            checkpoint_name(self._models[n % len(self._models)], MAIN, 1 + n % steps)
            for n in range(TOUCHED)
        ]
        bodies = [
            {
                "metadata": {
                    "name": name,
                    "namespace": NAMESPACE,
                    "annotations": {"touched": f"{word}{n}"},
                }
            }
            for n, name in enumerate(names)
        ]
        await at_once(
            partial(self._cluster.apply, "Checkpoint", body, manager="bench") for body in bodies
        )
        after = await running.settled()
        print(f"  writes by the operator: {after.writes - before.writes:.0f}")
        return 1000 * (after.cpu_seconds - before.cpu_seconds) / TOUCHED

    async def listed(self, count: int) -> float:
        """Seconds of `kubectl get checkpoints` of so many; the best of three."""
        bodies = [checkpoint(LISTED, "listed", step) for step in range(1, count + 1)]
        await at_once(partial(self._cluster.create, "Checkpoint", body) for body in bodies)
        took = []
        for _ in range(3):
            began = time.monotonic()
            table = await asyncio.to_thread(
                self._server.kubectl, "get", "checkpoints", "-n", LISTED, "--no-headers"
            )
            took.append(time.monotonic() - began)
            assert len(table.splitlines()) == count
        return min(took)


async def measure(server: ApiServer, models: int, checkpoints: int, listed: int) -> None:
    few, many = FEW // models, checkpoints // models
    async with await KubernetesCluster.connect() as cluster:
        scale = Scale(server, cluster, models)
        await scale.populate()
        await scale.grow(1, few)
        async with operator(server.kubeconfig, NAMESPACE) as running:
            await running.settled()
            at_few = await scale.touch(running, few, "few")
            print(f"event of a Checkpoint at {few * models}: {at_few:.2f} ms of CPU")
            before = await running.settled()
            await scale.grow(few + 1, many)
            after = await running.settled()
            report("growing", before, after)
            at_many = await scale.touch(running, many, "many")
            print(f"event of a Checkpoint at {many * models}: {at_many:.2f} ms of CPU")
            print(f"peak resident while growing: {running.peak_mib():.0f} MiB")
        print(f"cold start to reconciled: {await cold_start(server.kubeconfig, NAMESPACE)}")
        print(f"kubectl get checkpoints of {listed}: {await scale.listed(listed):.2f} s")


def report(what: str, before: Reading, after: Reading) -> None:
    writes, cpu = after.writes - before.writes, after.cpu_seconds - before.cpu_seconds
    seconds = after.seconds - before.seconds
    print(
        f"{what}: {writes:.0f} writes, {cpu:.1f} s of CPU, {1000 * cpu / writes:.2f} ms of CPU per "
        f"write, {seconds:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--checkpoints", type=int, default=10_000)
    parser.add_argument("--listed", type=int, default=2_000)
    options = parser.parse_args()
    with api_server(NAMESPACE, LISTED) as server:
        asyncio.run(measure(server, options.models, options.checkpoints, options.listed))


if __name__ == "__main__":
    main()
