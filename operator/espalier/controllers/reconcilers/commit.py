"""Reconciles the commits of a model's trainer: creates a Checkpoint for each valid commit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from espalier.api.wire.commits import Commit
from espalier.controllers.observed.lister import Lister
from espalier.controllers.observed.status_writer import StatusWriter
from espalier.controllers.peers.commit_streams import CommitStreams
from espalier.core.checkpoints import commits, disposal, run_tokens
from espalier.kube.cluster import Cluster
from espalier.kube.objects import ObjectKey

logger = logging.getLogger(__name__)

HELD_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class CommitReconciler:
    """Makes a Checkpoint of every commit that extends its branch, and reports every other one."""

    cluster: Cluster
    lister: Lister
    writer: StatusWriter
    streams: CommitStreams
    enqueue: Callable[[ObjectKey], None]
    # What an Event was recorded for: one commit waits per model, so these are few.
    _reported: set[tuple[str, str, str]] = field(default_factory=set, init=False)

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Deal with every pending commit of a model, oldest first."""
        ledger = self.streams.ledger(key.namespace, key.name)
        while ledger.pending and self.lister.model(key.namespace, key.name) is not None:
            commit = ledger.pending[0]
            ledger.held = not await self._enter(key.namespace, key.name, commit)
            if ledger.held:
                return HELD_SECONDS
            ledger.pending.pop(0)
            ledger.counted[commit.run] = max(ledger.counted.get(commit.run, 0), commit.run_step)
            heard = ledger.tokens.get(commit.run, run_tokens.NONE)
            ledger.tokens[commit.run] = run_tokens.most(heard, commit.run_tokens)
        self.enqueue(ObjectKey("TrainableModel", key.namespace, key.name))
        for run in self.lister.runs(key.namespace, key.name):
            self.enqueue(ObjectKey("TrainingRun", key.namespace, run.metadata.name))
        return None

    async def _enter(self, namespace: str, model: str, commit: Commit) -> bool:
        """Handle one commit; False if it has to wait."""
        lister = self.lister
        lineage, leader = lister.lineage(namespace, model), lister.leader(namespace, model)
        holder = lister.checkpoint(namespace, commit.name)
        verdict = commits.judge(commit, model, lineage, leader, holder)
        reported = (namespace, commit.name, commit.digest)
        if isinstance(verdict, commits.Accepted):
            await self._create(namespace, commit, verdict)
        elif isinstance(verdict, commits.Fenced):
            logger.warning("fenced: %s: %s", verdict.reason, verdict.message)
            message = f"{verdict.reason}: {verdict.message}. Its bytes stay on the volume"
            await self._warn(namespace, model, "CommitFenced", message)
        elif isinstance(verdict, commits.NameTaken) and reported not in self._reported:
            self._reported.add(reported)
            logger.warning("held: %s: %s", verdict.reason, verdict.message)
            message = f"{verdict.reason}: {verdict.message}"
            await self._warn(namespace, model, "CommitHeld", message)
        return not isinstance(verdict, commits.NameTaken)

    async def _warn(self, namespace: str, model: str, reason: str, message: str) -> None:
        body = self.lister.body(ObjectKey("TrainableModel", namespace, model))
        if body is not None:
            await self.writer.record("TrainableModel", body, "Warning", reason, message)

    async def _create(self, namespace: str, commit: Commit, verdict: commits.Accepted) -> None:
        """Make the Checkpoint; its arrival in the cache wakes the reconciler of its status."""
        intent = commits.checkpoint_body(commit, namespace, verdict.parent)
        model = self.lister.model(namespace, commit.model)
        if model is not None:
            intent = disposal.marked(intent, disposal.wanted(model, forked=False))
        body = await self.cluster.apply("Checkpoint", intent)
        self.lister.learn("Checkpoint", body)
