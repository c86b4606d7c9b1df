"""A runner's loop at work on a stand-in of the gateway, as tests drive it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from tests.runner.around import judge_at, surroundings
from tests.runner.standin import StandIn

from espalier.api.run.taskset import Taskset
from espalier.api.trainingrun import TrainingRunSpec
from espalier.client import GatewayClient, Patience
from espalier.process import JsonFormatter
from espalier.rewards import Rewards
from espalier.runner import heldout
from espalier.runner.custom_loss.declared_loss import open_loss
from espalier.runner.journal import Journal
from espalier.runner.loop import Limits, Loop
from espalier.runner.open_rewards import open_rewards
from espalier.runner.open_taskset import open_tasks
from espalier.runner.scoring.process import COMMAND
from espalier.runner.task_protocol import Tasks
from espalier.runner.task_source import AnsweredTasks, TaskSource
from espalier.runner.waiting import Waiting

PATIENCE = Patience(deadline=60.0, attempt=60.0, first_delay=0.001, longest_delay=0.01)
BRIEF = Limits(rounds=3, hold_seconds=0.05, settle_seconds=0.05)


class Bench:
    """A stand-in, the loop that drives its run, and what the loop wrote to its journal."""

    def __init__(self, gateway: StandIn, url: str, tasks: Path) -> None:
        self.gateway = gateway
        self.folder = tasks
        self.opened: list[Taskset | None] = []
        self.worker: Sequence[str] = COMMAND
        # What of a taskset's files this process finds.
        self.mounted: str | None = None
        self.mounted_modules: frozenset[str] | None = None
        # By ConfigMap and key, and the address of every Service.
        self.modules: dict[str, str] = {}
        self.services = ""
        self._url = url
        self._tasks = tasks
        self._stream = io.StringIO()

    async def drive(self, limits: Limits | None = None, patience: Patience = PATIENCE) -> None:
        """A runner process, from its start to its end."""
        journal = Journal("default/run")
        async with (
            self._logged(),
            GatewayClient(self._url, "default/tiny", "secret", patience=patience) as client,
        ):
            loop = Loop(
                client,
                ("default", "run"),
                open_tasks=self._open,
                open_rewards=self._open_rewards,
                open_loss=lambda ref: open_loss(ref, surroundings(modules=self.modules).module),
                journal=journal,
                waiting=Waiting(journal, poll_seconds=0.001),
                open_held_out=lambda run, wanted: heldout.of_evaluation(run, wanted, self.folder),
                mounted=self.mounted,
                modules=self.mounted_modules,
                limits=limits,
            )
            await loop.drive()

    @asynccontextmanager
    async def _logged(self) -> AsyncIterator[None]:
        """Meanwhile the runner's log goes to the stream."""
        handler = logging.StreamHandler(self._stream)
        handler.setFormatter(JsonFormatter())
        logger = logging.getLogger("espalier.runner")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The journal's lines of one kind."""
        lines = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [line for line in lines if line["event"] == name]

    def asked(self) -> list[str]:
        """The prompts, in the order that they came."""
        return [sample["messages"][-1]["content"] for sample in self.gateway.samples]

    def _open(self, spec: Taskset | None) -> TaskSource:
        self.opened.append(spec)
        return AnsweredTasks(open_tasks(spec, self._tasks))

    def _open_rewards(self, spec: TrainingRunSpec, tasks: Tasks) -> Rewards:
        around = surroundings(
            modules=self.modules,
            services=self.services,
            judge=judge_at(self._url),
            command=self.worker,
        )
        return open_rewards(spec, tasks, around)


def series() -> dict[str, float]:
    """Some of what Prometheus is told of runners in this process."""
    found = {
        "steps": REGISTRY.get_sample_value("espalier_runner_steps_total"),
        "rollouts": REGISTRY.get_sample_value("espalier_runner_rollouts_total"),
        "scored": REGISTRY.get_sample_value("espalier_runner_reward_duration_seconds_count"),
        "in flight": REGISTRY.get_sample_value("espalier_runner_rollouts_in_flight"),
    }
    for outcome in ("trained", "dropped"):
        labels = {"outcome": outcome}
        found[outcome] = REGISTRY.get_sample_value("espalier_runner_groups_total", labels)
    return {name: value or 0.0 for name, value in found.items()}


def held_out(**changes: Any) -> dict[str, Any]:
    """An evaluation on the digits of the file that the run does not train on."""
    tasks = {"configMap": {"name": "digits"}, "answerExtraction": "LastNumber"}
    return {"name": "held-out", "taskset": {"seed": 9, "size": 4, **tasks}, **changes}
