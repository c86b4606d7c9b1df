"""Reconciles a Checkpoint: which heads serve it, whether training went on elsewhere."""

from __future__ import annotations

from espalier.controllers.services import Services
from espalier.core import checkpoint as checkpoints
from espalier.kube.objects import Key


class CheckpointReconciler:
    """Observes a checkpoint and the heads that may serve it; writes its status alone."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def reconcile(self, key: Key) -> float | None:
        """One pass over a checkpoint."""
        checkpoint = self._services.snapshot.checkpoint(key.namespace, key.name)
        body = self._services.snapshot.cache.get(key)
        if checkpoint is None or body is None:
            return None
        own = checkpoint.spec.model_ref.name
        forks = {
            model.metadata.name
            for model in self._services.snapshot.models(key.namespace)
            if (ref := model.spec.source.checkpoint_ref) is not None and ref.name == key.name
        }
        heads = [
            h for name in {own, *forks} for h in self._services.snapshot.heads(key.namespace, name)
        ]
        lineage = self._services.snapshot.lineage(key.namespace, own)
        status = checkpoints.decide(checkpoint, heads, lineage, self._services.now())
        await self._services.writer.write("Checkpoint", body, status)
        return None
