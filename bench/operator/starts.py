"""Cold starts of the operator over the same Checkpoints, of several source trees in turn.

    python -m bench.operator.starts --times 6 ../before .
A figure of one start is off by a second or so; what two trees differ by shows in turns.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from statistics import median

from bench.operator.process import api_server, cold_start
from bench.operator.scale import NAMESPACE, Scale
from dev.apiserver import ApiServer

from espalier.kube.apiserver import KubernetesCluster


async def measure(server: ApiServer, trees: list[Path], checkpoints: int, times: int) -> None:
    models = 20
    async with await KubernetesCluster.connect() as cluster:
        scale = Scale(server, cluster, models)
        await scale.populate()
        await scale.grow(1, checkpoints // models)
    # The statuses of what is new are written once.
    await cold_start(server.kubeconfig, NAMESPACE, trees[0])
    taken: dict[Path, list[float]] = {tree: [] for tree in trees}
    for _ in range(times):
        for tree in trees:
            start = await cold_start(server.kubeconfig, NAMESPACE, tree)
            taken[tree].append(start.seconds)
            print(f"{tree}: {start}")
    for tree, seconds in taken.items():
        print(f"{tree}: median {median(seconds):.1f} s, lowest {min(seconds):.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", nargs="+", type=Path, help="roots of working trees")
    parser.add_argument("--checkpoints", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=6)
    options = parser.parse_args()
    trees = [tree.resolve() for tree in options.trees]
    with api_server(NAMESPACE) as server:
        asyncio.run(measure(server, trees, options.checkpoints, options.times))


if __name__ == "__main__":
    main()
