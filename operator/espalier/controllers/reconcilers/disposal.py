"""Reconciles the deleted Checkpoints of a model: has their bytes removed and lets them go."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from espalier.api.checkpoint import Checkpoint
from espalier.controllers.observed.lister import Lister
from espalier.controllers.observed.status_writer import StatusWriter
from espalier.core.checkpoints import disposal, retention
from espalier.core.checkpoints.disposal import RETAINED, DisposalDecision, DisposalView
from espalier.core.manifests.collector import collector_job, handed
from espalier.core.manifests.installation import ChildSettings
from espalier.core.names import collector_name
from espalier.kube.cluster import HTTP_FORBIDDEN, Cluster, ClusterError
from espalier.kube.objects import ObjectKey

logger = logging.getLogger(__name__)

GOING = "because it is being terminated"


@dataclass(frozen=True, kw_only=True)
class DisposalReconciler:
    """Observes what is being deleted of a model; acts on the collector's Job and the finalizers."""

    cluster: Cluster
    lister: Lister
    writer: StatusWriter
    settings: ChildSettings
    now: Callable[[], str]

    async def reconcile(self, key: ObjectKey) -> float | None:
        """One pass over the leaving Checkpoints of a model; seconds until the next."""
        job = ObjectKey("Job", key.namespace, collector_name(key.name))
        found = self.lister.leaving(key.namespace, key.name)
        leaving = [checkpoint for checkpoint in found if disposal.leaves(checkpoint)]
        if not leaving and self.lister.body(job) is None:
            return None
        lost = await self._lost(key.namespace, leaving)
        decision = disposal.decide(self._view(key, leaving, lost), self.now())
        await self._release(key.namespace, decision.released)
        try:
            await self._drive(job, decision)
        except ClusterError as error:
            if error.status != HTTP_FORBIDDEN or GOING not in str(error):
                raise
            left = {c.metadata.name: "the namespace is being deleted" for c in decision.batch}
            await self._release(key.namespace, left)
        return decision.again_seconds

    def _view(
        self, key: ObjectKey, leaving: list[Checkpoint], lost: Mapping[str, str]
    ) -> DisposalView:
        lister = self.lister
        job = ObjectKey("Job", key.namespace, collector_name(key.name))
        return DisposalView(
            leaving=leaving,
            needs=self._needs(key, leaving),
            lost=lost,
            job=lister.job(key.namespace, job.name),
            job_pods=lister.pods(key.namespace, "collector", model=key.name),
            handed=handed(lister.body(job)),
        )

    def _needs(self, key: ObjectKey, leaving: list[Checkpoint]) -> Mapping[str, str]:
        """By Checkpoint, what still needs it; heads of deleted models need nothing."""
        lister = self.lister
        models = lister.models(key.namespace)
        names = {model.metadata.name for model in models}
        heads = [h for h in lister.all_heads(key.namespace) if h.spec.model_ref.name in names]
        runs = [r for r in lister.all_runs(key.namespace) if r.spec.model_ref.name in names]
        if key.name in names:
            lineage = lister.lineage(key.namespace, key.name)
            view = retention.RetentionView(lineage, (), heads, models, referring=runs)
            return retention.needed(view, {c.metadata.name for c in leaving})
        found = {
            c.metadata.name: retention.needed_elsewhere(c.metadata.name, heads, models, runs)
            for c in leaving
        }
        return {name: reason for name, reason in found.items() if reason}

    async def _lost(self, namespace: str, leaving: list[Checkpoint]) -> dict[str, str]:
        """The claims whose bytes can never be reached again, and why."""
        lost: dict[str, str] = {}
        for claim in sorted({disposal.claim_of(c) for c in leaving}):
            found = await self.cluster.get(ObjectKey("PersistentVolumeClaim", namespace, claim))
            if found is None or found["metadata"].get("deletionTimestamp") is not None:
                lost[claim] = f"PersistentVolumeClaim {claim} is gone"
        return lost

    async def _release(self, namespace: str, released: Mapping[str, str]) -> None:
        for name, kept in released.items():
            body = self.lister.body(ObjectKey("Checkpoint", namespace, name))
            if body is None:
                continue
            if kept:
                message = f"its bytes stay on the volume: {kept}"
                await self.writer.record("Checkpoint", body, "Warning", "BytesKept", message)
            let_go = disposal.marked(body, RETAINED)
            try:
                applied = await self.cluster.apply("Checkpoint", let_go)
            except ClusterError as error:
                # It is gone already, or replaced by another of its name.
                if error.status not in (404, 409):
                    raise
                await self.writer.refresh(ObjectKey("Checkpoint", namespace, name))
                continue
            self.lister.learn("Checkpoint", applied)

    async def _drive(self, job: ObjectKey, decision: DisposalDecision) -> None:
        if decision.job == "Delete":
            found = self.lister.job(job.namespace, job.name)
            await self.cluster.delete(job, uid=found.uid if found else None)
        elif decision.job == "Create":
            batch = decision.batch
            model = self.lister.model(job.namespace, batch[0].spec.model_ref.name)
            body = collector_job(
                batch,
                disposal.claim_of(batch[0]),
                self.settings,
                orphaned=model is None or model.metadata.deletion_timestamp is not None,
                template=model.spec.jobs.template if model is not None else None,
            )
            await self.cluster.create("Job", body)
