"""Reconciles a Checkpoint: whether it is valid, which heads serve it, and
what happens to its bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from espalier.api.checkpoint import Checkpoint
from espalier.api.trainablemodel import TrainableModel
from espalier.controllers.observed.lister import Lister
from espalier.controllers.observed.status_writer import StatusWriter
from espalier.controllers.peers.assignments import Assignments
from espalier.controllers.peers.samplers import Rollouts
from espalier.controllers.reconcilers.scrub import Scrubs
from espalier.core import conditions
from espalier.core.checkpoints import checkpoint as checkpoints
from espalier.core.checkpoints import disposal
from espalier.core.checkpoints.disposal import DISPOSAL
from espalier.core.checkpoints.scrub_report import Fault
from espalier.kube.cluster import Cluster
from espalier.kube.objects import Body, ObjectKey, without_managers


@dataclass(frozen=True, kw_only=True)
class CheckpointReconciler:
    """Observes a checkpoint and the heads that may serve it; writes its status and its marks."""

    cluster: Cluster
    lister: Lister
    writer: StatusWriter
    rollouts: Rollouts
    trainers: Assignments
    scrubs: Scrubs
    now: Callable[[], str]
    enqueue: Callable[[ObjectKey], None]

    async def reconcile(self, key: ObjectKey) -> float | None:
        """One pass over a checkpoint."""
        checkpoint = self.lister.checkpoint(key.namespace, key.name)
        body = self.lister.body(key)
        if checkpoint is None or body is None:
            return None
        own = checkpoint.spec.model_ref.name
        if checkpoint.metadata.deletion_timestamp is not None:
            self.enqueue(ObjectKey(DISPOSAL, key.namespace, own))
            return None
        forks = self.lister.forks(key.namespace, key.name)
        heads = [h for name in {own, *forks} for h in self.lister.heads(key.namespace, name)]
        owner = self.lister.model(key.namespace, own)
        if owner is None or not checkpoint.metadata.goes_with_another(
            "TrainableModel", owner.metadata.uid
        ):
            body = await self._mark(key, body, owner, forked=bool(forks))
        lineage = self.lister.lineage(key.namespace, own)
        status = checkpoints.decide(
            checkpoint, heads, lineage, self.now(), self._evidence(checkpoint)
        )
        if await self.writer.write("Checkpoint", body, status):
            before, after = checkpoint.status.conditions, status.conditions
            if conditions.is_true(after, conditions.STALLED):
                await self.writer.announce("Checkpoint", body, before, after)
        return None

    def _evidence(self, checkpoint: Checkpoint) -> checkpoints.Evidence:
        namespace, digest = checkpoint.metadata.namespace, checkpoint.spec.digest
        rollouts, trainers = self.rollouts, self.trainers
        model = checkpoint.spec.model_ref.name
        found = self.scrubs.found(checkpoint)
        rotten = found.problem if isinstance(found, Fault) else None
        refused = rollouts.refusal(namespace, digest)
        return checkpoints.Evidence(
            rotten or refused or trainers.unreadable(namespace, model, digest),
            rollouts.verified(namespace, digest),
            sound=found is True,
        )

    async def _mark(
        self, key: ObjectKey, body: Body, owner: TrainableModel | None, *, forked: bool
    ) -> Body:
        """Make finalizer, owner and claim what the model's deletionPolicy asks; the body then."""
        if owner is None or owner.metadata.deletion_timestamp is not None:
            return body
        wanted = disposal.wanted(owner, forked=forked)
        if disposal.is_marked(body, wanted):
            return body
        applied = await self.cluster.apply("Checkpoint", disposal.marked(body, wanted))
        self.lister.learn("Checkpoint", applied)
        return without_managers(applied)
