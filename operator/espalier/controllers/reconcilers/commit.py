"""Reconciles the commits of a model's trainer: a Checkpoint of each that extends its branch."""

from __future__ import annotations

import logging

from espalier.api.wire import Commit
from espalier.controllers.context import Services
from espalier.core.checkpoints import commits, disposal
from espalier.kube.objects import Key, without_managers

logger = logging.getLogger(__name__)

HELD_SECONDS = 10.0


class CommitReconciler:
    """Makes a Checkpoint of every commit that extends its branch, and reports every other one."""

    def __init__(self, services: Services) -> None:
        self._services = services
        # What an Event was recorded for: one commit waits per model, so these are few.
        self._held: set[tuple[str, str, str]] = set()

    async def reconcile(self, key: Key) -> float | None:
        """Deal with every pending commit of a model, oldest first."""
        ledger = self._services.streams.ledger(key.namespace, key.name)
        while ledger.pending and self._services.snapshot.model(key.namespace, key.name) is not None:
            commit = ledger.pending[0]
            if not await self._enter(key.namespace, key.name, commit):
                return HELD_SECONDS
            ledger.pending.pop(0)
            ledger.counted[commit.run] = max(ledger.counted.get(commit.run, 0), commit.run_step)
        self._services.enqueue(Key("TrainableModel", key.namespace, key.name))
        for run in self._services.snapshot.runs(key.namespace, key.name):
            self._services.enqueue(Key("TrainingRun", key.namespace, run.metadata.name))
        return None

    async def _enter(self, namespace: str, model: str, commit: Commit) -> bool:
        """Deal with one commit; False if it has to wait."""
        snapshot = self._services.snapshot
        lineage, leader = snapshot.lineage(namespace, model), snapshot.leader(namespace, model)
        holder = snapshot.checkpoint(namespace, commit.name)
        verdict = commits.judge(commit, model, lineage, leader, holder)
        said = (namespace, commit.name, commit.digest)
        if isinstance(verdict, commits.Accepted):
            await self._create(namespace, commit, verdict)
        elif isinstance(verdict, commits.Fenced):
            logger.warning("fenced: %s: %s", verdict.reason, verdict.message)
            message = f"{verdict.reason}: {verdict.message}. Its bytes stay on the volume"
            await self._warn(namespace, model, "CommitFenced", message)
        elif isinstance(verdict, commits.Held) and said not in self._held:
            self._held.add(said)
            logger.warning("held: %s: %s", verdict.reason, verdict.message)
            message = f"{verdict.reason}: {verdict.message}"
            await self._warn(namespace, model, "CommitHeld", message)
        return not isinstance(verdict, commits.Held)

    async def _warn(self, namespace: str, model: str, reason: str, message: str) -> None:
        body = self._services.snapshot.cache.get(Key("TrainableModel", namespace, model))
        if body is not None:
            await self._services.writer.record("TrainableModel", body, "Warning", reason, message)

    async def _create(self, namespace: str, commit: Commit, verdict: commits.Accepted) -> None:
        """Make the Checkpoint; that it shows in the cache wakes whoever writes its status."""
        intent = commits.checkpoint_body(commit, namespace, verdict.parent)
        model = self._services.snapshot.model(namespace, commit.model)
        if model is not None:
            intent = disposal.marked(intent, disposal.wanted(model, forked=False))
        body = await self._services.cluster.apply("Checkpoint", intent)
        self._services.snapshot.cache.put("Checkpoint", without_managers(body))
