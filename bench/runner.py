"""What the runner itself costs: CPU time of a step and of a rollout, and memory of 1,000 in flight.

A gateway without weights answers at once, in a process of its own. The cost of a step and of a
rollout are told apart by runs of two sizes; all are CPU seconds of the runner's process alone,
scoring worker and gateway left out.

    PYTHONPATH=operator:. python -m bench.runner
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web
from dev.ports import free_port
from tests.runner.around import surroundings
from tests.runner.standin import StandIn

from espalier.client import GatewayClient
from espalier.runner.journal import Journal
from espalier.runner.loop import Loop
from espalier.runner.open_rewards import open_rewards
from espalier.runner.open_taskset import open_tasks
from espalier.runner.task_source import AnsweredTasks
from espalier.runner.waiting import Waiting

STEP_GOAL, ROLLOUT_GOAL, MEMORY_GOAL = 0.050, 0.001, 400.0
GROUP = 8
TOKENS = 200


async def serve(port: int, spec: Mapping[str, Any]) -> None:
    """The gateway; answers are as long as those of a small model."""
    gateway = StandIn(**spec)
    gateway.answer = lambda prompt, index: (
        prompt.split("=", maxsplit=1)[0] if index % 2 == 0 else "x" * TOKENS
    )
    runner = web.AppRunner(gateway.app())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


async def drive(port: int, folder: Path) -> None:
    """The runner, from its start to its last step."""
    journal = Journal("default/run")
    async with GatewayClient(f"http://127.0.0.1:{port}", "default/tiny", "secret") as client:
        loop = Loop(
            client,
            ("default", "run"),
            open_tasks=lambda spec: AnsweredTasks(open_tasks(spec, folder)),
            open_rewards=lambda spec, tasks: open_rewards(spec, tasks, surroundings()),
            journal=journal,
            waiting=Waiting(journal),
        )
        await loop.drive()


def run(steps: int, groups: int) -> tuple[float, float]:
    """CPU seconds of a runner's process over so many steps, and its peak in MiB."""
    port = free_port()
    spec = {"steps": steps, "groupsPerStep": groups, "groupSize": GROUP}
    with tempfile.TemporaryDirectory() as folder:
        rows = [json.dumps({"prompt": f"{digit}=", "answer": str(digit)}) for digit in range(8)]
        (Path(folder) / "tasks.jsonl").write_text("\n".join(rows))
        command = [sys.executable, "-m", "bench.runner"]
        gateway = subprocess.Popen(
            [*command, "--serve", str(port), "--spec", json.dumps(spec)], stdout=subprocess.PIPE
        )
        try:
            assert gateway.stdout is not None
            assert gateway.stdout.readline().strip() == b"ready"
            done = subprocess.run(
                [*command, "--drive", str(port), "--folder", folder],
                check=True,
                capture_output=True,
                text=True,
            )
        finally:
            gateway.kill()
            gateway.wait()
    cpu, memory = json.loads(done.stdout)
    return cpu, memory


def report() -> bool:
    """Prints the figures; whether the goals were kept."""
    start, _ = run(1, 1)
    small, _ = run(41, 1)
    large, _ = run(41, 17)
    step = (small - start) / 40
    rollout = (large - small) / (41 * 16 * GROUP)
    step -= rollout * GROUP
    _, memory = run(1, 1000 // GROUP)
    kept = step <= STEP_GOAL and rollout <= ROLLOUT_GOAL and memory <= MEMORY_GOAL
    print(f"start {start:.2f} CPU s; a step {1e3 * step:.1f} ms (goal {1e3 * STEP_GOAL:.0f})")
    print(f"a rollout {1e3 * rollout:.2f} ms (goal {1e3 * ROLLOUT_GOAL:.0f})")
    print(f"1,000 rollouts of one step: peak {memory:.0f} MiB (goal {MEMORY_GOAL:.0f})")
    return kept


def main() -> int:
    """One of the processes, or the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=int)
    parser.add_argument("--spec", type=json.loads)
    parser.add_argument("--drive", type=int)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve(given.serve, given.spec))
    elif given.drive:
        asyncio.run(drive(given.drive, given.folder))
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
    else:
        return 0 if report() else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
