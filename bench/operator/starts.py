"""Cold starts of the operator over the same Checkpoints, of several source trees in turn.

    python -m bench.operator.starts --times 6 ../before .
A figure of one start is off by a second or so; what two trees differ by shows in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from statistics import median

from bench.operator.process import Reading, operator
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
    await _start(server, trees[0])
    taken: dict[Path, list[float]] = {tree: [] for tree in trees}
    for _ in range(times):
        for tree in trees:
            seconds, done, peak = await _start(server, tree)
            taken[tree].append(seconds)
            print(
                f"{tree}: {seconds:.1f} s, {done.cpu_seconds:.1f} s of CPU, {done.writes:.0f} "
                f"writes, peak resident {peak:.0f} MiB"
            )
    for tree, seconds_of in taken.items():
        print(f"{tree}: median {median(seconds_of):.1f} s, lowest {min(seconds_of):.1f} s")


async def _start(server: ApiServer, tree: Path) -> tuple[float, Reading, float]:
    """Seconds from the process to the last pass, what it had done by then, and its peak in MiB."""
    os.environ["PYTHONPATH"] = str(tree / "operator")
    async with operator(server.kubeconfig, NAMESPACE) as running:
        done = await running.settled()
        return done.seconds - running.started, done, running.peak_mib()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", nargs="+", type=Path, help="roots of working trees")
    parser.add_argument("--checkpoints", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=6)
    options = parser.parse_args()
    with ApiServer() as server:
        server.apply_crds()
        server.create_namespace(NAMESPACE)
        os.environ["KUBECONFIG"] = str(server.kubeconfig)
        trees = [tree.resolve() for tree in options.trees]
        asyncio.run(measure(server, trees, options.checkpoints, options.times))


if __name__ == "__main__":
    main()
