"""The scrub of a model: observes the Job that reads its bytes, and acts on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from espalier.api.checkpoint import Checkpoint
from espalier.api.trainablemodel import TrainableModel
from espalier.controllers.observed.lister import Lister
from espalier.core.checkpoints import scrub, scrub_report
from espalier.core.checkpoints.scrub import ScrubDecision
from espalier.core.checkpoints.scrub_report import Fault
from espalier.core.manifests.installation import ChildSettings
from espalier.core.manifests.scrubber import handed, scrubber_job
from espalier.core.names import scrubber_name
from espalier.kube import queue_metrics
from espalier.kube.cluster import Cluster
from espalier.kube.objects import ObjectKey


@dataclass(frozen=True, kw_only=True)
class Scrubs:
    """A part of the reconciler of models, which writes what is decided here."""

    cluster: Cluster
    lister: Lister
    settings: ChildSettings
    enqueue: Callable[[ObjectKey], None]

    def decide(self, model: TrainableModel, now: str) -> ScrubDecision:
        """What to do next, by the Job and its pods as they are seen now."""
        namespace, name = model.metadata.namespace, model.metadata.name
        job = ObjectKey("Job", namespace, scrubber_name(name))
        view = scrub.ScrubView(
            model=model,
            checkpoints=self.lister.lineage(namespace, name).by_name,
            job=self.lister.job(namespace, job.name),
            job_pods=self.lister.pods(namespace, "scrubber", model=name),
            handed=handed(self.lister.body(job)),
        )
        return scrub.decide(view, now)

    async def drive(self, model: TrainableModel, decision: ScrubDecision) -> float | None:
        """Makes or deletes the Job, and has Checkpoints say what it found; seconds until next."""
        namespace, name = model.metadata.namespace, model.metadata.name
        job = ObjectKey("Job", namespace, scrubber_name(name))
        for checkpoint in decision.unsettled:
            self.enqueue(ObjectKey("Checkpoint", namespace, checkpoint))
        if decision.job == "Create" and model.status.resolved is not None:
            base = model.status.resolved.digest if decision.base else ""
            await self.cluster.create(
                "Job", scrubber_job(model, decision.batch, base, self.settings)
            )
        elif decision.job == "Delete":
            found = self.lister.job(namespace, job.name)
            await self.cluster.delete(job, uid=found.uid if found is not None else None)
            queue_metrics.SCRUBBED_BYTES.inc(decision.read_bytes)
        return decision.again_seconds

    def found(self, checkpoint: Checkpoint) -> Fault | bool:
        """What the Job that there is found of a checkpoint, as ``evidence`` says it."""
        namespace, model = checkpoint.metadata.namespace, checkpoint.spec.model_ref.name
        key = ObjectKey("Job", namespace, scrubber_name(model))
        body = self.lister.body(key)
        if body is None:
            return False
        pods = self.lister.pods(namespace, "scrubber", model=model)
        report = scrub_report.report(self.lister.job(namespace, key.name), pods)
        return scrub_report.evidence(report, handed(body), checkpoint)
