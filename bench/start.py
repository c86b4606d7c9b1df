"""The start of ``espalier dev`` with the tiny model: when each step is reached, and what it costs.

    python -m bench.start [--goal 30]
Prints seconds since the start at each line that ``espalier dev`` says until the run trains, and the
CPU seconds of every process by then. Exit code 1 above the goal (of wall-clock time; 0: no goal).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dev.tiny_model import make

MANIFESTS = Path(__file__).parents[1] / "examples" / "cookbooks" / "manifests"
IMAGE = "localhost:5000/espalier/cookbook-model:1"
READY = "TrainingRun tiny: AwaitingClient"
LIMIT_SECONDS = 240.0


async def main() -> int:
    """One start in a directory of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--goal", type=float, default=0.0)
    goal: float = parser.parse_args().goal
    with tempfile.TemporaryDirectory() as work:
        model, manifests = make(Path(work) / "model", spread=0.2), Path(work) / "manifests"
        shutil.copytree(MANIFESTS, manifests)
        began = time.monotonic()
        command = ("-m", "espalier.cli.main", "dev", str(manifests), "--port", "18080")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *command, "--image", f"{IMAGE}={model}"),
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                took = await _shown(process, began)
            for role, seconds in _costs(process.pid):
                print(f"{seconds:6.1f} CPU s  {role}")
        finally:
            process.send_signal(signal.SIGINT)
            await process.communicate()
    print(f"up in {took:.1f} s" + (f", goal {goal:g} s" if goal else ""))
    return 1 if goal and took > goal else 0


async def _shown(process: asyncio.subprocess.Process, began: float) -> float:
    """Prints what it says with times; seconds until it trains."""
    assert process.stdout is not None
    while line := (await process.stdout.readline()).decode():
        took = time.monotonic() - began
        print(f"{took:6.1f} s  {line.split(' ESPALIER_TOKEN')[0].rstrip()}")
        if line.startswith(READY):
            return took
    raise SystemExit("espalier dev ended before the run trained")


def _costs(pid: int) -> Iterator[tuple[str, float]]:
    """Each process with its CPU seconds, those of its ended children included."""
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    role = re.search(r"espalier\.\w+(?:\.main dev)?|VLLM\S*", command)
    yield role[0] if role else command, sum(map(int, values[11:15])) / os.sysconf("SC_CLK_TCK")
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _costs(int(child))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
