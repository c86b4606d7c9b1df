"""Reconciles the deleted Checkpoints of a model: has their bytes removed and lets them go."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from espalier.api.checkpoint import Checkpoint
from espalier.controllers.context import Services
from espalier.core.checkpoints import disposal, retention
from espalier.core.checkpoints.disposal import RETAINED, DisposalDecision, DisposalView
from espalier.core.manifests.collector import collector_job, handed
from espalier.core.names import collector_name
from espalier.kube.cluster import FORBIDDEN, ClusterError
from espalier.kube.objects import Key, without_managers

logger = logging.getLogger(__name__)

GOING = "because it is being terminated"


class DisposalReconciler:
    """Observes what is being deleted of a model; acts on the collector's Job and the finalizers."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def reconcile(self, key: Key) -> float | None:
        """One pass over the leaving Checkpoints of a model; seconds until the next."""
        job = Key("Job", key.namespace, collector_name(key.name))
        found = self._services.snapshot.leaving(key.namespace, key.name)
        leaving = [checkpoint for checkpoint in found if disposal.leaves(checkpoint)]
        if not leaving and self._services.snapshot.cache.get(job) is None:
            return None
        lost = await self._lost(key.namespace, leaving)
        decision = disposal.decide(self._view(key, leaving, lost), self._services.now())
        await self._release(key.namespace, decision.released)
        try:
            await self._drive(job, decision)
        except ClusterError as error:
            if error.status != FORBIDDEN or GOING not in str(error):
                raise
            left = {c.metadata.name: "the namespace is being deleted" for c in decision.batch}
            await self._release(key.namespace, left)
        return decision.again_seconds

    def _view(self, key: Key, leaving: list[Checkpoint], lost: Mapping[str, str]) -> DisposalView:
        snapshot = self._services.snapshot
        job = Key("Job", key.namespace, collector_name(key.name))
        return DisposalView(
            leaving=leaving,
            needs=self._needs(key, leaving),
            lost=lost,
            job=snapshot.job(key.namespace, job.name),
            job_pods=snapshot.pods(key.namespace, "collector", model=key.name),
            handed=handed(snapshot.cache.get(job)),
        )

    def _needs(self, key: Key, leaving: list[Checkpoint]) -> Mapping[str, str]:
        """What still needs them; heads of models that are gone need nothing."""
        snapshot = self._services.snapshot
        models = snapshot.models(key.namespace)
        names = {model.metadata.name for model in models}
        heads = [h for h in snapshot.all_heads(key.namespace) if h.spec.model_ref.name in names]
        if key.name in names:
            lineage = snapshot.lineage(key.namespace, key.name)
            return retention.needed(retention.RetentionView(lineage, (), heads, models))
        found = {
            c.metadata.name: retention.needed_elsewhere(c.metadata.name, heads, models)
            for c in leaving
        }
        return {name: reason for name, reason in found.items() if reason}

    async def _lost(self, namespace: str, leaving: list[Checkpoint]) -> dict[str, str]:
        """The claims whose bytes are out of reach for good, and why."""
        lost: dict[str, str] = {}
        for claim in sorted({disposal.claim_of(c) for c in leaving}):
            found = await self._services.cluster.get(Key("PersistentVolumeClaim", namespace, claim))
            if found is None or found["metadata"].get("deletionTimestamp") is not None:
                lost[claim] = f"PersistentVolumeClaim {claim} is gone"
        return lost

    async def _release(self, namespace: str, released: Mapping[str, str]) -> None:
        for name, kept in released.items():
            body = self._services.snapshot.cache.get(Key("Checkpoint", namespace, name))
            if body is None:
                continue
            if kept:
                message = f"its bytes stay on the volume: {kept}"
                await self._services.writer.record(
                    "Checkpoint", body, "Warning", "BytesKept", message
                )
            let_go = disposal.marked(body, RETAINED)
            try:
                applied = await self._services.cluster.apply("Checkpoint", let_go)
            except ClusterError as error:
                # It is gone already, or another of its name is there.
                if error.status not in (404, 409):
                    raise
                await self._services.writer.refresh(Key("Checkpoint", namespace, name))
                continue
            self._services.snapshot.cache.put("Checkpoint", without_managers(applied))

    async def _drive(self, job: Key, decision: DisposalDecision) -> None:
        if decision.job == "Delete":
            found = self._services.snapshot.job(job.namespace, job.name)
            await self._services.cluster.delete(job, uid=found.uid if found else None)
        elif decision.job == "Create":
            batch = decision.batch
            model = self._services.snapshot.model(job.namespace, batch[0].spec.model_ref.name)
            body = collector_job(
                batch,
                disposal.claim_of(batch[0]),
                self._services.settings,
                orphaned=model is None or model.metadata.deletion_timestamp is not None,
                template=model.spec.jobs.template if model is not None else None,
            )
            await self._services.cluster.create("Job", body)
