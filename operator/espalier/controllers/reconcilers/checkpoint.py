"""Reconciles a Checkpoint: whether it is true, which heads serve it, what of its bytes becomes."""

from __future__ import annotations

from espalier.api.checkpoint import Checkpoint
from espalier.controllers.context import Services
from espalier.core import conditions
from espalier.core.checkpoints import checkpoint as checkpoints
from espalier.core.checkpoints import disposal
from espalier.core.checkpoints.disposal import KIND as DISPOSAL
from espalier.kube.objects import Body, Key, without_managers


class CheckpointReconciler:
    """Observes a checkpoint and the heads that may serve it; writes its status and its marks."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def reconcile(self, key: Key) -> float | None:
        """One pass over a checkpoint."""
        checkpoint = self._services.snapshot.checkpoint(key.namespace, key.name)
        body = self._services.snapshot.cache.get(key)
        if checkpoint is None or body is None:
            return None
        own = checkpoint.spec.model_ref.name
        if checkpoint.metadata.deletion_timestamp is not None:
            self._services.enqueue(Key(DISPOSAL, key.namespace, own))
            return None
        forks = self._services.snapshot.forks(key.namespace, key.name)
        heads = [
            h for name in {own, *forks} for h in self._services.snapshot.heads(key.namespace, name)
        ]
        body = await self._mark(key, body, own, forked=bool(forks))
        lineage = self._services.snapshot.lineage(key.namespace, own)
        status = checkpoints.decide(
            checkpoint, heads, lineage, self._services.now(), self._evidence(checkpoint)
        )
        if await self._services.writer.write("Checkpoint", body, status):
            before, after = checkpoint.status.conditions, status.conditions
            if conditions.is_true(after, conditions.STALLED):
                await self._services.writer.announce("Checkpoint", body, before, after)
        return None

    def _evidence(self, checkpoint: Checkpoint) -> checkpoints.Evidence:
        namespace, digest = checkpoint.metadata.namespace, checkpoint.spec.digest
        rollouts, trainers = self._services.rollouts, self._services.trainers
        model = checkpoint.spec.model_ref.name
        return checkpoints.Evidence(
            rollouts.refusal(namespace, digest) or trainers.unreadable(namespace, model, digest),
            rollouts.verified(namespace, digest),
        )

    async def _mark(self, key: Key, body: Body, model: str, *, forked: bool) -> Body:
        """Make finalizer, owner and claim what the model's deletionPolicy asks; the body then."""
        owner = self._services.snapshot.model(key.namespace, model)
        if owner is None or owner.metadata.deletion_timestamp is not None:
            return body
        wanted = disposal.wanted(owner, forked=forked)
        if disposal.is_marked(body, wanted):
            return body
        applied = await self._services.cluster.apply("Checkpoint", disposal.marked(body, wanted))
        body = without_managers(applied)
        self._services.snapshot.cache.put("Checkpoint", body)
        return body
