"""How many answers a second a runner and its scoring worker score, on one core.

Everything is held to one core: the runner's event loop, the worker and its children. Answers come
in groups of one task, as a step samples them. `evaluates` marks datasets of which a process scores
one answer alone. The goal is held to the CPU time of all of them, which says the same on a machine
that does other work; the rate by the clock stands beside it.

    PYTHONPATH=operator:. python -m bench.scoring [--answers 4000]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
import time
from pathlib import Path

from espalier.api.run.taskset import Taskset
from espalier.runner.open_taskset import open_tasks
from espalier.runner.scoring.scorer import Scorer
from espalier.runner.scoring.scorers import EVALUATING

GOALS = {"chain_sum": 500.0, "countdown": 0.0, "simple_integration": 0.0, "spiral_matrix": 0.0}
GROUP = 8
TASKS = 64


async def measure(dataset: str, answers: int, goal: float) -> bool:
    """Prints one line; whether the goal was kept."""
    source = {"dataset": dataset}
    spec = Taskset.model_validate({"seed": 1, "size": TASKS, "reasoningGym": source})
    tasks = open_tasks(spec)
    # Half of them right, as far as that can be said from outside.
    texts = [f"Let me see. <answer>{17 * n}</answer>" for n in range(GROUP)]
    async with Scorer(spec, tasks) as scorer:
        opened = time.monotonic()
        await scorer.ready()
        start = time.monotonic() - opened
        await scorer.score(0, texts[0])
        began, used = time.monotonic(), cpu()
        pending = [
            scorer.score(group % TASKS, texts[n])
            for group in range(answers // GROUP)
            for n in range(GROUP)
        ]
        scores = await asyncio.gather(*pending)
        took = time.monotonic() - began
        used = cpu() - used
    failed = sum(score.failure is not None for score in scores)
    rate = len(scores) / used
    kind = "evaluates" if dataset in EVALUATING else "batches"
    said = f", goal {goal:.0f}: {'kept' if rate >= goal else 'missed'}" if goal else ""
    print(
        f"{dataset:20} {kind:10} {rate:7.0f} scores a CPU second, {len(scores) / took:.0f} by the "
        f"clock, {failed} failed; worker ready after {start:.1f} s{said}"
    )
    return rate >= goal


def cpu() -> float:
    """CPU seconds of this process, its worker and the children that ended."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = usage.ru_utime + usage.ru_stime
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            seconds += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return seconds


async def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--answers", type=int, default=4000)
    answers: int = parser.parse_args().answers
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, held to one")
    kept = [
        await measure(dataset, answers if goal else answers // 20, goal)
        for dataset, goal in GOALS.items()
    ]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
