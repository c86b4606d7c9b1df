"""Reconciles a TrainableModel: its base, the pods that serve and train it, its head and tree."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from espalier.api.trainablemodel import TrainableModel
from espalier.api.wire import ImportState
from espalier.controllers.context import Services
from espalier.controllers.observed.parsing import UnreadableError
from espalier.core import conditions
from espalier.core.checkpoints import retention
from espalier.core.manifests.importer import importer_job
from espalier.core.manifests.intent import Manifest, is_current
from espalier.core.manifests.labels import MODEL, ROLE, Role
from espalier.core.manifests.sampler import rollout_deployment, rollout_service
from espalier.core.manifests.trainer import trainer_service, trainer_statefulset
from espalier.core.model import model as models
from espalier.core.model import reported, source
from espalier.core.names import importer_name, rollout_name, trainer_name
from espalier.core.pods import pods
from espalier.core.pods.blockers import Hindrance, uncreated
from espalier.core.pods.pods import Pod
from espalier.core.run import idle
from espalier.core.run import turn as turns
from espalier.kube.objects import Key, key_of, without_managers

# Checkpoints that retention deletes in one pass, and seconds until the next.
RETIRED_AT_ONCE = 50
RETIRE_SECONDS = 5.0
UNREADABLE_SECONDS = 60.0
OWN_ROLES: tuple[Role, ...] = ("importer", "trainer", "rollout")


@dataclass(frozen=True)
class _Wanted:
    """All that the manifests of a model's servers depend on; None for servers not to be touched."""

    uid: str
    generation: int
    base: str
    rollouts: int | None
    trainers: int | None


class ModelReconciler:
    """Observes a model and all that belongs to it; acts on its children and its default head."""

    def __init__(self, services: Services) -> None:
        self._services = services
        # Manifests are built and hashed anew only when something in them changes.
        self._intents: dict[Key, tuple[_Wanted, list[Manifest]]] = {}

    async def reconcile(self, key: Key) -> float | None:
        """One pass over a model; seconds until it should be looked at again."""
        model = self._services.snapshot.model(key.namespace, key.name)
        body = self._services.snapshot.cache.get(key)
        if model is None or body is None or model.metadata.deletion_timestamp is not None:
            self._services.streams.forget(key.namespace, key.name)
            self._services.trainers.forget(key.namespace, key.name)
            self._services.hindrances.forget(key)
            self._intents.pop(key, None)
            return None
        asked = await self._ask(key)
        told, far = await self._progress(model)
        origin = source.decide(self._source(model, told))
        await self._import(model, origin.importer)
        # Before the view: what a trainer said holds only while it is there.
        self._follow(model)
        now = self._services.now()
        runs = self._services.snapshot.runs(key.namespace, key.name)
        freed_in = idle.freed_in(runs, now)
        decision = models.decide(self._view(model, origin, freed=freed_in == 0), now)
        if decision.root is not None:
            made = await self._services.cluster.create("Checkpoint", decision.root)
            if made is not None:
                self._services.snapshot.cache.put("Checkpoint", without_managers(made))
        if decision.head_in == 0:
            await self._services.cluster.create("CheckpointHead", models.default_head(model))
        await self._children(model, decision)
        if await self._services.writer.write("TrainableModel", body, decision.status):
            before, after = model.status.conditions, decision.status.conditions
            await self._services.writer.announce(
                "TrainableModel", body, before, after, faults=reported.ANNOUNCED
            )
        waits = (decision.head_in or None, freed_in or None, await self._retire(key), asked, far)
        return min((seconds for seconds in waits if seconds is not None), default=None)

    async def _retire(self, key: Key) -> float | None:
        """Delete what the rules of the model's runs no longer keep, a bounded number at a time."""
        snapshot = self._services.snapshot
        try:
            view = retention.RetentionView(
                lineage=snapshot.lineage(key.namespace, key.name),
                runs=snapshot.runs(key.namespace, key.name),
                heads=snapshot.all_heads(key.namespace),
                models=snapshot.models(key.namespace),
            )
        except UnreadableError:
            # Whatever cannot be understood may need a checkpoint.
            return UNREADABLE_SECONDS
        found = retention.expendable(view)
        ready = (c for c in found if retention.has_told(c, view.lineage))
        for checkpoint in islice(ready, RETIRED_AT_ONCE):
            retired = Key("Checkpoint", key.namespace, checkpoint.metadata.name)
            await self._services.cluster.delete(retired, uid=checkpoint.metadata.uid)
        return RETIRE_SECONDS if found else None

    async def _progress(self, model: TrainableModel) -> tuple[ImportState | None, float | None]:
        """How far the importer is, while there is one that runs."""
        namespace, name = model.metadata.namespace, model.metadata.name
        found = self._services.snapshot.pods(namespace, "importer", model=name)
        running = (pod for pod in pods.live(found) if pod.started and pod.ip and not pod.outlived)
        known = model.status.resolved is not None
        pod = None if known else next(running, None)
        return await self._services.imports.look(namespace, name, pod)

    def _source(self, model: TrainableModel, told: ImportState | None = None) -> source.SourceView:
        namespace, name = model.metadata.namespace, model.metadata.name
        origin = self._services.snapshot.origin(model)
        parent = origin.spec.model_ref.name if origin is not None else ""
        job = self._services.snapshot.job(namespace, importer_name(name))
        hindrances = self._services.hindrances.of(namespace, "Job")
        return source.SourceView(
            model=model,
            origin=origin,
            origin_model=self._services.snapshot.model(namespace, parent),
            importer=job,
            importer_pods=self._pods(model, "importer"),
            hindrance=hindrances.get(job.uid) if job is not None else None,
            told=told,
        )

    def _pods(self, model: TrainableModel, role: Role) -> list[Pod]:
        """The pods of a role; those that do not say why they do not start, with what Events say."""
        namespace, name = model.metadata.namespace, model.metadata.name
        found = self._services.snapshot.pods(namespace, role, model=name)
        return pods.hindered(found, self._services.hindrances.of(namespace, "Pod"))

    async def _ask(self, key: Key) -> float | None:
        """Learn why children do not get on where neither they nor their pods say it."""
        snapshot = self._services.snapshot
        found = {r: snapshot.pods(key.namespace, r, model=key.name) for r in OWN_ROLES}
        every = [pod for of_role in found.values() for pod in pods.live(of_role)]
        silent = {"Pod": [pod.uid for pod in every if pods.is_silent(pod)]}
        job = snapshot.job(key.namespace, importer_name(key.name))
        if job is not None and not found["importer"] and not (job.finished or job.suspended):
            silent["Job"] = [job.uid]
        trainer = snapshot.cache.get(_trainer(key))
        if trainer is not None and trainer["spec"]["replicas"] and not found["trainer"]:
            silent["StatefulSet"] = [trainer["metadata"]["uid"]]
        return await self._services.hindrances.ask(key, silent)

    def _hindrances(self, key: Key) -> dict[str, Hindrance]:
        """Why pods cannot be made, by the condition of their group."""
        cache = self._services.snapshot.cache
        trainer = cache.get(_trainer(key)) or {"metadata": {}}
        told = self._services.hindrances.of(key.namespace, "StatefulSet")
        rollouts = Key("Deployment", key.namespace, rollout_name(key.name))
        found = {
            conditions.TRAINER_READY: told.get(trainer["metadata"].get("uid", "")),
            conditions.ROLLOUTS_READY: uncreated(cache.get(rollouts)),
        }
        return {type_: hindrance for type_, hindrance in found.items() if hindrance is not None}

    def _view(
        self, model: TrainableModel, origin: source.SourceDecision, *, freed: bool
    ) -> models.ModelView:
        """What is known of the model; ``freed``: the trainer is for want of calls."""
        namespace, name = model.metadata.namespace, model.metadata.name
        lineage = self._services.snapshot.lineage(namespace, name)
        leader = self._services.snapshot.leader(namespace, name)
        ledger = self._services.streams.ledger(namespace, name)
        head = self._services.snapshot.head(namespace, name)
        runs = self._services.snapshot.runs(namespace, name)
        resting = turns.active(runs) if freed else None
        return models.ModelView(
            model=model,
            source=origin,
            lineage=lineage,
            heads=self._services.snapshot.heads(namespace, name),
            trainer_pods=self._pods(model, "trainer"),
            rollout_pods=self._pods(model, "rollout"),
            hindrances=self._hindrances(_key(model)),
            trains=resting is None and turns.trainer_wanted(runs, leader, lineage),
            idle_run=resting.metadata.name if resting is not None else "",
            gateway_url=self._services.settings.gateway_url,
            warnings=ledger.warnings,
            problem=ledger.problem,
            namesake=head if leader is None else None,
        )

    async def _import(self, model: TrainableModel, action: source.ImporterAction) -> None:
        key = Key("Job", model.metadata.namespace, importer_name(model.metadata.name))
        if action == "Create":
            await self._services.cluster.create("Job", importer_job(model, self._services.settings))
        elif action == "Delete":
            await self._read_pods(model)
            found = self._services.snapshot.job(key.namespace, key.name)
            # Decided once more, on what is known by now, and with no wait in between.
            if found is not None and source.decide(self._source(model)).importer == "Delete":
                await self._services.cluster.delete(key, uid=found.uid)

    async def _read_pods(self, model: TrainableModel) -> None:
        """Let the cache know the importer's pods as they are.

        Jobs and pods are watched apart: that a Job is complete may be seen before its pod's report.
        """
        labels = {MODEL: model.metadata.name, ROLE: "importer"}
        for body in await self._services.cluster.list("Pod", model.metadata.namespace, labels):
            self._services.snapshot.cache.put("Pod", without_managers(body))

    async def _children(self, model: TrainableModel, decision: models.ModelDecision) -> None:
        """Make the children what they should be."""
        cache, key = self._services.snapshot.cache, _key(model)
        trainer = _trainer(key)
        wanted = _Wanted(
            model.metadata.uid,
            model.metadata.generation,
            decision.status.resolved.digest if decision.status.resolved else "",
            decision.rollout_replicas,
            # A trainer is made when it is first wanted.
            decision.trainer_replicas
            if decision.trainer_replicas or cache.get(trainer) is not None
            else None,
        )
        held = self._intents.get(key)
        if held is None or held[0] != wanted:
            held = self._intents[key] = (wanted, self._build(model, wanted))
        for intent in held[1]:
            child = key_of(intent["kind"], intent)
            if not is_current(cache.get(child), intent):
                applied = await self._services.cluster.apply(child.kind, intent)
                cache.put(child.kind, without_managers(applied))

    def _build(self, model: TrainableModel, wanted: _Wanted) -> list[Manifest]:
        settings, intents = self._services.settings, list[Manifest]()
        if wanted.rollouts is not None:
            rollout = model.spec.rollout.model_copy(update={"replicas": wanted.rollouts})
            spec = model.spec.model_copy(update={"rollout": rollout})
            scaled = model.model_copy(update={"spec": spec})
            intents.append(rollout_service(model))
            intents.append(rollout_deployment(scaled, settings, base=wanted.base))
        if wanted.trainers is not None:
            intents.append(trainer_service(model))
            intents.append(
                trainer_statefulset(model, settings, base=wanted.base, replicas=wanted.trainers)
            )
        return intents

    def _follow(self, model: TrainableModel) -> None:
        """Follow the commits of the trainer that is ready, if one is."""
        namespace, name = model.metadata.namespace, model.metadata.name
        found = pods.live(self._services.snapshot.pods(namespace, "trainer", model=name))
        self._services.streams.follow(
            namespace, name, next((pod for pod in found if pod.ready), None)
        )


def _trainer(model: Key) -> Key:
    return Key("StatefulSet", model.namespace, trainer_name(model.name))


def _key(model: TrainableModel) -> Key:
    return Key("TrainableModel", model.metadata.namespace, model.metadata.name)
