"""What the operator computes for itself, on a cluster in memory: a first pass, and an event.

    python -m bench.operator.passes --models 20 --checkpoints 100 10000
Watching and talking to the API server are left out (bench/operator/scale.py has them), so that the
figures hold on a busy machine as well.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import resource
import time

from bench.operator.scale import NAMESPACE, RESOLVED, SPEC, checkpoint
from tests.fakes.cluster import FakeCluster
from tests.simulation.scripted import ScriptedImporter, ScriptedRollouts, ScriptedTrainer
from tests.simulation.world import SETTINGS

from espalier.controllers.process.operator import Operator
from espalier.controllers.process.replica import MANY
from espalier.core.names import MAIN, checkpoint_name
from espalier.kube.cache import Cache
from espalier.kube.objects import ObjectKey

TOUCHED = 200
NOW = "2026-01-01T00:00:00Z"


async def populate(cluster: FakeCluster, models: int, steps: int) -> list[str]:
    """Models of that many steps each, on one line."""
    names = [f"model-{n:02d}" for n in range(models)]
    for name in names:
        metadata = {"name": name, "namespace": NAMESPACE}
        await cluster.create("TrainableModel", {"metadata": metadata, "spec": SPEC})
        status = {"resolved": RESOLVED}
        await cluster.apply_status("TrainableModel", {"metadata": metadata, "status": status})
        for step in range(1, steps + 1):
            await cluster.create("Checkpoint", checkpoint(NAMESPACE, name, step))
    return names


class Started:
    """An operator on a cluster, with a cache of its own."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cache = cache = Cache(packed=MANY)
        cluster.feed(cache)
        self.operator = Operator(
            cluster,
            cache,
            ScriptedTrainer(),
            ScriptedRollouts(),
            SETTINGS,
            importer=ScriptedImporter(),
            now=lambda: NOW,
        )
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self.operator.run(self._stop))

    async def idle(self) -> None:
        """Until no key waits or runs."""
        while True:
            await asyncio.sleep(0)
            if self.operator.queue.idle:
                return

    async def end(self) -> None:
        self._stop.set()
        await self._task


async def measure(models: int, checkpoints: int) -> None:
    """Prints what a pass over everything and an event of a Checkpoint take."""
    cluster = FakeCluster()
    names = await populate(cluster, models, checkpoints // models)
    first = Started(cluster)
    await first.idle()
    await first.end()
    calls, began = len(cluster.calls), time.process_time()
    second = Started(cluster)
    await second.idle()
    took = time.process_time() - began
    print(
        f"{checkpoints} Checkpoints: a pass over all that changes nothing {took:.2f} s of CPU, "
        f"{1000 * took / checkpoints:.2f} ms each, {len(cluster.calls) - calls} writes"
    )
    bodies = []
    for n in range(TOUCHED):
        name = checkpoint_name(names[n % models], MAIN, 1 + n % (checkpoints // models))
        body = copy.deepcopy(cluster.objects[ObjectKey("Checkpoint", NAMESPACE, name)])
        version = 10_000_000 + n
        body["metadata"] |= {"annotations": {**body["metadata"]["annotations"], "touched": str(n)}}
        body["metadata"]["resourceVersion"] = str(version)
        bodies.append(body)
    cache, began = second.cache, time.process_time()
    for body in bodies:
        cache.put("Checkpoint", body)
        await second.idle()
    took = time.process_time() - began
    print(f"  an event of a Checkpoint that changes nothing: {1000 * took / TOUCHED:.2f} ms of CPU")
    await second.end()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  peak resident of this process, cluster and two caches included: {peak:.0f} MiB")


def main() -> None:
    """Measures each number of Checkpoints in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--checkpoints", type=int, nargs="+", default=[100, 10_000])
    options = parser.parse_args()
    for checkpoints in options.checkpoints:
        asyncio.run(measure(options.models, checkpoints))


if __name__ == "__main__":
    main()
