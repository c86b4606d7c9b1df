"""Head moves on a real API server: from the edited spec to `status.current`, rollouts scripted.

    python -m bench.operator.moves --moves 100
The rollout answers at once, so that what is measured is the operator and the API server. With real
rollouts on a cluster: bench/rollback.py.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

from bench.operator.process import SYSTEM, api_server, operator
from bench.operator.scale import checkpoint
from dev.apiserver import ApiServer
from tests.simulation.kubelet import RESOLVED
from tests.simulation.servers import ROLLOUT_IP, Servers, serving
from tests.simulation.test_process import Stage, is_current
from tests.simulation.world import head_spec, model_spec

from espalier.kube.apiserver import KubernetesCluster

NAMESPACE = "moves"
MODEL = "tiny"
STEPS = 20
POLL_SECONDS = 0.01


async def measure(server: ApiServer, moves: int) -> list[float]:
    """Seconds of each move, in turn to an early checkpoint and to a late one."""
    async with (
        await KubernetesCluster.connect() as cluster,
        operator(server.kubeconfig, NAMESPACE),
    ):
        stage = Stage(cluster, NAMESPACE, SYSTEM, None)
        servers = Servers(NAMESPACE, MODEL, await stage.keys())
        async with serving(servers):
            await stage.apply("TrainableModel", MODEL, model_spec())
            await stage.play("importer", "127.77.0.1", RESOLVED)
            await stage.play("rollout", ROLLOUT_IP, by=servers)
            for step in range(1, STEPS + 1):
                await cluster.create("Checkpoint", checkpoint(NAMESPACE, MODEL, step))
            await stage.until("CheckpointHead", MODEL, is_current(f"{MODEL}-{STEPS:06d}"))
            return [await move(stage, f"{MODEL}-{2 + 15 * (n % 2):06d}") for n in range(moves)]


async def move(stage: Stage, name: str) -> float:
    """Seconds from the edit to the status that says it is served."""
    began = time.monotonic()
    await stage.apply("CheckpointHead", MODEL, head_spec(MODEL, "Pin", name))
    while not is_current(name)(await stage.get("CheckpointHead", MODEL)):
        if time.monotonic() - began > 60:
            raise SystemExit(f"{name} was not served within 60 s")
        await asyncio.sleep(POLL_SECONDS)
    return time.monotonic() - began


def main() -> None:
    """Prints the median and the slowest of a hundred."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moves", type=int, default=100)
    options = parser.parse_args()
    with api_server(NAMESPACE) as server:
        took = sorted(asyncio.run(measure(server, options.moves)))
    p99 = took[min(len(took) - 1, round(0.99 * len(took)))]
    print(f"head moves: p50 {statistics.median(took):.3f} s, p99 {p99:.3f} s over {len(took)}")


if __name__ == "__main__":
    main()
