"""Reconciles a TrainableModel: its base, the pods that serve and train it, its head and tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

from espalier.api.trainablemodel import TrainableModel
from espalier.api.wire.import_state import ImportState
from espalier.controllers.observed.blockers import Blockers
from espalier.controllers.observed.lister import Lister
from espalier.controllers.observed.parsing import UnreadableObjectError
from espalier.controllers.observed.queues import Queues
from espalier.controllers.observed.status_writer import StatusWriter
from espalier.controllers.peers.assignments import Assignments
from espalier.controllers.peers.commit_streams import CommitStreams
from espalier.controllers.peers.importer_client import Imports
from espalier.controllers.reconcilers.scrub import Scrubs
from espalier.controllers.reconcilers.servers import Servers, trainer_key
from espalier.core import conditions
from espalier.core.checkpoints import retention
from espalier.core.manifests.importer import importer_job
from espalier.core.manifests.installation import ChildSettings
from espalier.core.manifests.labels import MODEL, ROLE, Role
from espalier.core.model import default_head, reported, source
from espalier.core.model import model as models
from espalier.core.names import importer_name, rollout_name
from espalier.core.pods import pods
from espalier.core.pods.blockers import Blocker, uncreated
from espalier.core.pods.pods import Pod
from espalier.core.run import idle
from espalier.core.run import turn as turns
from espalier.kube.cluster import Cluster
from espalier.kube.objects import ObjectKey

# Checkpoints that retention deletes in one pass, and seconds until the next.
RETIRED_AT_ONCE = 50
RETIRE_SECONDS = 5.0
UNREADABLE_SECONDS = 60.0
OWN_ROLES: tuple[Role, ...] = ("importer", "trainer", "rollout")


@dataclass(frozen=True, kw_only=True)
class ModelReconciler:
    """Observes a model and all that belongs to it; acts on its children and its default head."""

    cluster: Cluster
    lister: Lister
    writer: StatusWriter
    trainers: Assignments
    streams: CommitStreams
    blockers: Blockers
    queues: Queues
    imports: Imports
    settings: ChildSettings
    servers: Servers
    scrubs: Scrubs
    now: Callable[[], str]

    async def reconcile(self, key: ObjectKey) -> float | None:
        """One pass over a model; seconds until it should be looked at again."""
        model = self.lister.model(key.namespace, key.name)
        body = self.lister.body(key)
        if model is None or body is None or model.metadata.deletion_timestamp is not None:
            self.streams.forget(key.namespace, key.name)
            self.trainers.forget(key.namespace, key.name)
            self.blockers.forget(key)
            self.servers.forget(key)
            return None
        asked = await self._ask(key)
        import_state, far = await self._progress(model)
        origin = source.decide(self._source(model, import_state))
        await self._import(model, origin.importer)
        # Before the view: what a trainer reported is forgotten once it is gone.
        self._follow(model)
        now = self.now()
        runs = self.lister.runs(key.namespace, key.name)
        freed_in = idle.freed_in(runs, now)
        scrubbed = self.scrubs.decide(model, now)
        view = replace(self._view(model, origin, freed=freed_in == 0), scrub=scrubbed)
        decision = models.decide(view, now)
        if decision.root is not None:
            made = await self.cluster.create("Checkpoint", decision.root)
            if made is not None:
                self.lister.learn("Checkpoint", made)
        if decision.head_in == 0:
            await self.cluster.create("CheckpointHead", default_head.manifest(model))
        replaced = await self.servers.apply(model, decision)
        if await self.writer.write("TrainableModel", body, decision.status):
            before, after = model.status.conditions, decision.status.conditions
            await self.writer.announce(
                "TrainableModel", body, before, after, faults=reported.ANNOUNCED
            )
        # After the write: a batch whose Job is gone must be on record.
        read_on = await self.scrubs.drive(model, scrubbed)
        retire = await self._retire(key)
        waits = (decision.head_in or None, freed_in or None, retire, asked, far, read_on, replaced)
        return min((seconds for seconds in waits if seconds is not None), default=None)

    async def _retire(self, key: ObjectKey) -> float | None:
        """Delete what the rules of the model's runs no longer keep, a bounded number at a time."""
        lister = self.lister
        try:
            view = retention.RetentionView(
                lineage=lister.lineage(key.namespace, key.name),
                runs=lister.runs(key.namespace, key.name),
                heads=lister.all_heads(key.namespace),
                models=lister.models(key.namespace),
                referring=lister.all_runs(key.namespace),
                now=self.now(),
            )
        except UnreadableObjectError:
            # An object that cannot be read may need any of the checkpoints.
            return UNREADABLE_SECONDS
        found = retention.expendable(view)
        ready = (c for c in found if retention.has_told(c, view.lineage))
        for checkpoint in islice(ready, RETIRED_AT_ONCE):
            retired = ObjectKey("Checkpoint", key.namespace, checkpoint.metadata.name)
            await self.cluster.delete(retired, uid=checkpoint.metadata.uid)
        return RETIRE_SECONDS if found else None

    async def _progress(self, model: TrainableModel) -> tuple[ImportState | None, float | None]:
        """The progress of the importer while it runs."""
        namespace, name = model.metadata.namespace, model.metadata.name
        found = self.lister.pods(namespace, "importer", model=name)
        present = (pod for pod in pods.live(found) if pod.started and not pod.placing)
        running = (pod for pod in present if pod.ip and not pod.outlived)
        known = model.status.resolved is not None
        pod = None if known else next(running, None)
        return await self.imports.look(namespace, name, pod)

    def _source(
        self, model: TrainableModel, import_state: ImportState | None = None
    ) -> source.SourceView:
        namespace, name = model.metadata.namespace, model.metadata.name
        origin = self.lister.origin(model)
        parent = origin.spec.model_ref.name if origin is not None else ""
        job = self.lister.job(namespace, importer_name(name))
        blockers = self.blockers.of(namespace, "Job")
        return source.SourceView(
            model=model,
            origin=origin,
            origin_model=self.lister.model(namespace, parent),
            importer=job,
            importer_pods=self._pods(model, "importer"),
            queued=self.queues.of(namespace).says(job.place) if job is not None else None,
            blocker=blockers.get(job.uid) if job is not None else None,
            import_state=import_state,
        )

    def _pods(self, model: TrainableModel, role: Role) -> list[Pod]:
        """The pods of a role; those that do not say why they do not start, with what Events say."""
        namespace, name = model.metadata.namespace, model.metadata.name
        found = self.lister.pods(namespace, role, model=name)
        found = pods.with_blockers(found, self.blockers.of(namespace, "Pod"))
        return pods.in_queue(found, self.queues.of(namespace))

    async def _ask(self, key: ObjectKey) -> float | None:
        """Learn why children are stuck, if neither they nor their pods give a reason."""
        lister = self.lister
        found = {r: lister.pods(key.namespace, r, model=key.name) for r in OWN_ROLES}
        every = [pod for of_role in found.values() for pod in pods.live(of_role)]
        silent = {"Pod": [pod.uid for pod in every if pods.is_silent(pod)]}
        job = lister.job(key.namespace, importer_name(key.name))
        if job is not None and not found["importer"] and not (job.finished or job.suspended):
            silent["Job"] = [job.uid]
        trainer = lister.body(trainer_key(key))
        if trainer is not None and trainer["spec"]["replicas"] and not found["trainer"]:
            silent["StatefulSet"] = [trainer["metadata"]["uid"]]
        stuck = await self.blockers.ask(key, silent)
        places = [pod.place for pod in every] + ([job.place] if job is not None else [])
        queued = await self.queues.ask(key.namespace, places)
        return min((s for s in (stuck, queued) if s is not None), default=None)

    def _blockers(self, key: ObjectKey) -> dict[str, Blocker]:
        """Why pods cannot be made, by the condition of their group."""
        trainer = self.lister.body(trainer_key(key)) or {"metadata": {}}
        blocked = self.blockers.of(key.namespace, "StatefulSet")
        rollouts = ObjectKey("Deployment", key.namespace, rollout_name(key.name))
        found = {
            conditions.TRAINER_READY: blocked.get(trainer["metadata"].get("uid", "")),
            conditions.ROLLOUTS_READY: uncreated(self.lister.body(rollouts)),
        }
        return {type_: blocker for type_, blocker in found.items() if blocker is not None}

    def _view(
        self, model: TrainableModel, origin: source.SourceDecision, *, freed: bool
    ) -> models.ModelView:
        """What is known of the model; ``freed``: the trainer is for want of calls."""
        namespace, name = model.metadata.namespace, model.metadata.name
        lineage = self.lister.lineage(namespace, name)
        leader = self.lister.leader(namespace, name)
        ledger = self.streams.ledger(namespace, name)
        head = self.lister.head(namespace, name)
        runs = self.lister.runs(namespace, name)
        active = turns.active(runs)
        resting = active if freed else None
        return models.ModelView(
            model=model,
            source=origin,
            lineage=lineage,
            heads=self.lister.heads(namespace, name),
            trainer_pods=self._pods(model, "trainer"),
            rollout_pods=self._pods(model, "rollout"),
            blockers=self._blockers(_key(model)),
            trains=resting is None and turns.trainer_wanted(runs, leader, lineage),
            idle_run=resting.metadata.name if resting is not None else "",
            gateway_url=self.settings.gateway_url,
            warnings=ledger.warnings,
            problem=ledger.problem,
            namesake=head if leader is None else None,
            reads=self.lister.reads(model, turns.waiting(runs)),
            run=active,
        )

    async def _import(self, model: TrainableModel, action: source.ImporterAction) -> None:
        key = ObjectKey("Job", model.metadata.namespace, importer_name(model.metadata.name))
        if action == "Create":
            await self.cluster.create("Job", importer_job(model, self.settings))
        elif action == "Delete":
            await self._read_pods(model)
            found = self.lister.job(key.namespace, key.name)
            # Decide again on the present state, without awaiting anything in between.
            if found is not None and source.decide(self._source(model)).importer == "Delete":
                await self.cluster.delete(key, uid=found.uid)

    async def _read_pods(self, model: TrainableModel) -> None:
        """Let the cache know the importer's pods as they are.

        Jobs and pods are watched apart: that a Job is complete may be seen before its pod's report.
        """
        labels = {MODEL: model.metadata.name, ROLE: "importer"}
        for body in await self.cluster.list("Pod", model.metadata.namespace, labels):
            self.lister.learn("Pod", body)

    def _follow(self, model: TrainableModel) -> None:
        """Follow the commits of the trainer that is ready, if one is."""
        namespace, name = model.metadata.namespace, model.metadata.name
        self.streams.follow(namespace, name, self.lister.ready_trainer(namespace, name))


def _key(model: TrainableModel) -> ObjectKey:
    return ObjectKey("TrainableModel", model.metadata.namespace, model.metadata.name)
