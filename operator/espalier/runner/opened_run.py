"""What of a run is open in its runner: its taskset with what scores it, and its loss."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from espalier.api.run.loss import CustomRef
from espalier.api.run.taskset import Taskset
from espalier.api.run.timeouts import Timeouts
from espalier.api.trainingrun import TrainingRunSpec
from espalier.runner.custom_loss.declared_loss import SECONDS, DeclaredLoss
from espalier.runner.journal import Journal
from espalier.runner.opened_taskset import OpenedTaskset
from espalier.runner.scored_by import ScoredBy
from espalier.runner.task_source import OpenRewards, TaskSource


class MovedError(Exception):
    """The run's tasks or modules are now somewhere that this pod has not mounted."""


class OpenedRun:
    """Opens what the spec names, and again what was edited.

    Args:
        open_tasks, open_rewards, open_loss: as of a Loop.
        journal: told of tasks that were opened.
        mounted, modules: as of a Loop.
    """

    def __init__(
        self,
        open_tasks: Callable[[Taskset | None], TaskSource],
        open_rewards: OpenRewards,
        open_loss: Callable[[CustomRef], DeclaredLoss],
        journal: Journal,
        *,
        mounted: str | None,
        modules: frozenset[str] | None,
    ) -> None:
        self._open_tasks = open_tasks
        self._open_rewards = open_rewards
        self._open_loss = open_loss
        self._journal = journal
        self._mounted = mounted
        self._modules = modules
        self._opened: tuple[ScoredBy, OpenedTaskset] | None = None
        self._loss: DeclaredLoss | None = None

    def find(self, spec: TrainingRunSpec) -> None:
        """Raises MovedError where the run names files or modules that are not mounted here."""
        needed = spec.taskset.mounted if spec.taskset is not None else ""
        if needed and self._mounted not in (None, needed):
            file = spec.taskset.file if spec.taskset is not None else None
            raise MovedError(file.name if file is not None else needed)
        if self._modules is not None and (absent := set(spec.modules) - self._modules):
            raise MovedError(f"configmap/{min(absent)}")

    def loss(self, spec: TrainingRunSpec) -> DeclaredLoss | None:
        """The loss that the user wrote; None for a built-in one."""
        ref = spec.loss.custom_ref if spec.loss is not None else None
        if ref is None:
            return None
        if self._loss is None or self._loss.ref != ref:
            self._loss = self._open_loss(ref)
        seconds = (spec.timeouts or Timeouts()).loss_seconds
        return replace(self._loss, seconds=seconds or SECONDS)

    async def taskset(self, spec: TrainingRunSpec) -> OpenedTaskset:
        """The tasks, and what scores or plays them."""
        wanted = ScoredBy.of(spec)
        if self._opened is not None and self._opened[0] == wanted:
            return self._opened[1]
        await self.close()
        # Importing a dataset takes seconds, in which SIGTERM must be heard.
        tasks = await asyncio.to_thread(self._open_tasks, spec.taskset)
        opened = await OpenedTaskset.open(spec, tasks, self._open_rewards)
        self._opened = (wanted, opened)
        used = opened.used
        self._journal.event("tasks-opened", size=used.size, digest=used.digest, **opened.facts)
        return opened

    async def close(self) -> None:
        """Ends what plays and scores."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened[1].close()
