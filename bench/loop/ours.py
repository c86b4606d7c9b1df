"""Espalier as one side of the comparison: ``espalier dev`` and a ``Fit``, all on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml
from bench.loop.setting import Setting
from bench.loop.sums import EXAMPLE, Sum, trained
from dev.ports import free_port

from espalier import Fit, FitConfig, Sampling, TrainingClient
from espalier.core.volume import checkpoints_of, directory_name
from espalier.loop.schedule import Schedule
from espalier.loop.session import RolloutFunction, Session

READY_SECONDS = 600.0
CLAIM = "espalier-weights"
NAME = "bench"
TIME = re.compile(r"time/(\w+)_seconds")


@dataclass
class Told:
    """What a fit told of its steps."""

    steps: list[Mapping[str, float]] = field(default_factory=list)

    def start(self, config: Mapping[str, Any]) -> None:
        """See ``Tracker``."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See ``Tracker``."""
        self.steps.append(metrics)

    def finish(self) -> None:
        """See ``Tracker``."""

    def phases(self) -> dict[str, float]:
        """Seconds of all steps by what they were spent on."""
        found: Counter[str] = Counter()
        for metrics in self.steps:
            for name, value in metrics.items():
                if named := TIME.fullmatch(name):
                    found[named[1]] += value
        found.pop("step", None)
        return dict(found)


async def answer(task: Sum, session: Session) -> float:
    """One answer, and whether it is right."""
    return task.reward((await session.sample(task.prompt)).text)


class Ours:
    """``espalier dev`` over the arithmetic example, whose run a script drives."""

    def __init__(self, setting: Setting, folder: Path, process: asyncio.subprocess.Process) -> None:
        self.setting = setting
        self._folder = folder
        self._process = process
        self.client: TrainingClient

    @classmethod
    async def start(cls, setting: Setting, folder: Path) -> Self:
        """Returns when the run trains."""
        manifests = folder / "manifests"
        _declare(setting, manifests)
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "espalier.cli.main", "dev", str(manifests)),
            *("--state", str(folder / "state"), "--port", str(port)),
            *("--image", f"bench:1={setting.model}"),
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        side = cls(setting, folder, process)
        try:
            async with asyncio.timeout(READY_SECONDS):
                token = await side._until(r"TrainingRun bench: AwaitingClient|.*TOKEN=(\S+)")
                await side._until(r"TrainingRun bench: AwaitingClient")
        except BaseException:
            await side.close()
            raise
        side.client = TrainingClient(NAME, base_url=f"http://127.0.0.1:{port}", token=token)
        return side

    async def _until(self, pattern: str) -> str:
        assert self._process.stdout is not None
        while line := (await self._process.stdout.readline()).decode():
            if found := re.match(pattern, line):
                return found[1] if found.lastindex else ""
        raise SystemExit("espalier dev ended before the run trained")

    async def piece(
        self,
        steps: int,
        schedule: Schedule[Any] | None = None,
        *,
        tasks: Sequence[Sum] = (),
        rollout: RolloutFunction[Any] = answer,
    ) -> dict[str, Any]:
        """Takes so many steps more: wall-clock and CPU seconds, and wall-clock by phase.

        On the example's sums, synchronously, unless others are given.
        """
        setting, told = self.setting, Told()
        config = FitConfig(
            steps=(await self.client.state()).run_step + steps,
            learning_rate=setting.learning_rate,
            group=setting.size,
            tasks_per_step=setting.groups,
            loss_fn=setting.loss,
            sampling=Sampling(max_tokens=setting.max_tokens),
        )
        fit = Fit(
            self.client,
            tasks or trained(setting.seed),
            rollout,
            config,
            trackers=[told],
            schedule=schedule,
        )
        began, cpu = time.monotonic(), self.cpu()
        await fit.fit_async()
        wall, cpu = time.monotonic() - began, self.cpu() - cpu
        return {"wall": wall, "cpu": cpu, "phases": told.phases(), "told": told.steps}

    def cpu(self) -> float:
        """CPU seconds of this process, of ``espalier dev`` and of all that it started."""
        return time.process_time() + _cpu(self._process.pid)

    def name(self, step: int) -> str:
        """Of a step's checkpoint."""
        return f"{NAME}-{step:06d}"

    async def adapter(self, name: str) -> Path:
        """The directory of a checkpoint."""
        async with asyncio.timeout(READY_SECONDS):
            # Another process writes it.
            while not (digest := self._digest(name)):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        volume = self._folder / "state" / "volumes" / CLAIM
        return checkpoints_of(volume, NAME) / directory_name(digest)

    def _digest(self, checkpoint: str) -> str:
        """Of a Checkpoint by name; empty until ``espalier dev`` has written its objects."""
        objects = json.loads((self._folder / "state" / "objects.json").read_text())
        found = (
            one["spec"]["digest"]
            for one in objects
            if one["kind"] == "Checkpoint" and one["metadata"]["name"] == checkpoint
        )
        return next(found, "")

    async def close(self) -> None:
        """Ends everything that was started."""
        if hasattr(self, "client"):
            await asyncio.to_thread(self.client.close)
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.communicate()


def _declare(setting: Setting, folder: Path) -> None:
    """The example's manifests with the comparison's numbers, and a run for a script."""
    folder.mkdir(parents=True)
    read = {name: yaml.safe_load((EXAMPLE / f"{name}.yaml").read_text()) for name in _USED}
    model, head = read["model"], read["head"]
    model["metadata"]["name"] = head["metadata"]["name"] = NAME
    head["spec"]["modelRef"]["name"] = NAME
    model["spec"]["source"]["base"]["image"] = "bench:1"
    model["spec"]["adapter"] |= {
        "rank": setting.rank,
        "alpha": setting.alpha,
        "seed": setting.seed,
    }
    run = {
        "apiVersion": model["apiVersion"],
        "kind": "TrainingRun",
        "metadata": {"name": NAME},
        "spec": {"modelRef": {"name": NAME}, "driver": "Client", "steps": 1000},
    }
    for name, body in [*read.items(), ("run", run)]:
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(body))


_USED = ("storage", "model", "head")


def _cpu(pid: int) -> float:
    """CPU seconds of a process and its descendants, those that have ended included."""
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = sum(map(int, values[11:15])) / os.sysconf("SC_CLK_TCK")
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(c) for task in tasks for c in (task / "children").read_text().split()]
    return own + sum(map(_cpu, children))
