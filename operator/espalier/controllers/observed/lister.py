"""The cache as typed objects: what reconcilers observe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHead
from espalier.api.model.status import Read
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.controllers.observed.parsing import UnreadableObjectError, read
from espalier.core.lineage.lineage import Lineage, recorded_bases, root_of
from espalier.core.lineage.lineage_index import LineageIndex
from espalier.core.manifests.labels import Role
from espalier.core.model import reads
from espalier.core.pods.pods import JobState, Pod, live, read_job, read_pod
from espalier.kube.cache import Cache, ChangeSource
from espalier.kube.objects import Body, ObjectKey, without_managers
from espalier.kube.own_pods import Membership

T = TypeVar("T", bound=BaseModel)


class Lister:
    """Typed reads of a cache; each version of an object is parsed once.

    Every read raises UnreadableError when an object that it needs cannot be understood.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._membership = Membership(cache)
        self._parsed: dict[ObjectKey, tuple[int, BaseModel]] = {}
        # By model; None where one of its Checkpoints was not understood.
        self._indexes: dict[tuple[str, str], LineageIndex | None] = {}
        for key in cache.keys(Checkpoint.__name__):
            self._reindex(key, None, cache.get(key))
        cache.on_change(self._follow)

    def body(self, key: ObjectKey) -> Body | None:
        """The object as the API server has it, without managedFields."""
        return self._cache.get(key)

    def learn(self, kind: str, body: Body) -> None:
        """Put the API server's answer to our own write or read into the cache."""
        self._cache.put(kind, without_managers(body))

    def model(self, namespace: str, name: str) -> TrainableModel | None:
        """The TrainableModel of that name."""
        return self._one(TrainableModel, namespace, name)

    def models(self, namespace: str) -> list[TrainableModel]:
        """Every TrainableModel of a namespace."""
        return self._all(TrainableModel, namespace)

    def forks(self, namespace: str, checkpoint: str) -> set[str]:
        """The names of the models that fork from a checkpoint."""
        return {
            key.name for key in self._cache.keys("TrainableModel", namespace, origin=checkpoint)
        }

    def run(self, namespace: str, name: str) -> TrainingRun | None:
        """The TrainingRun of that name."""
        return self._one(TrainingRun, namespace, name)

    def runs(self, namespace: str, model: str) -> list[TrainingRun]:
        """The runs of a model."""
        return self._all(TrainingRun, namespace, model=model)

    def all_runs(self, namespace: str) -> list[TrainingRun]:
        """Every TrainingRun of a namespace."""
        return self._all(TrainingRun, namespace)

    def head(self, namespace: str, name: str) -> CheckpointHead | None:
        """The CheckpointHead of that name."""
        return self._one(CheckpointHead, namespace, name)

    def heads(self, namespace: str, model: str) -> list[CheckpointHead]:
        """The heads of a model."""
        return self._all(CheckpointHead, namespace, model=model)

    def all_heads(self, namespace: str) -> list[CheckpointHead]:
        """Every CheckpointHead of a namespace."""
        return self._all(CheckpointHead, namespace)

    def leader(self, namespace: str, model: str) -> CheckpointHead | None:
        """The head that training continues from: the one of the model's name."""
        head = self.head(namespace, model)
        return head if head is not None and head.spec.model_ref.name == model else None

    def checkpoint(self, namespace: str, name: str) -> Checkpoint | None:
        """The Checkpoint of that name."""
        return self._one(Checkpoint, namespace, name)

    def made_by(self, namespace: str, model: str, run_uid: str) -> Sequence[Checkpoint]:
        """The checkpoints that a run made of a model, in the order that they were made."""
        return self._index(namespace, model).made_by(run_uid)

    def leaving(self, namespace: str, model: str) -> list[Checkpoint]:
        """The checkpoints of a model that are being deleted."""
        return self._index(namespace, model).leaving()

    def lineage(self, namespace: str, name: str) -> Lineage:
        """The lines of descent of a model's checkpoints."""
        model = self.model(namespace, name)
        root = root_of(model, self.origin(model)) if model is not None else None
        return self._index(namespace, name).lineage(root, recorded_bases(model))

    def origin(self, model: TrainableModel) -> Checkpoint | None:
        """The checkpoint that a model forks from, if it does and the checkpoint exists."""
        ref = model.spec.source.checkpoint_ref
        return self.checkpoint(model.metadata.namespace, ref.name) if ref is not None else None

    def reads(self, model: TrainableModel, runs: Sequence[TrainingRun]) -> list[Read]:
        """What a model's pods may read of other models, each while it is the turn of its run."""
        names = reads.named(model, runs)
        there = [self.checkpoint(model.metadata.namespace, name) for name in names]
        found = {c.metadata.name: c.spec.model_ref.name for c in there if c is not None}
        return reads.of(model, names, found)

    def pods(self, namespace: str, role: Role, *, model: str = "", run: str = "") -> list[Pod]:
        """The pods of a role, of a model or of a run; not those that merely carry the labels."""
        index = {"run": run} if run else {"model": model}
        bodies = self._cache.list("Pod", namespace, role=role, **index)
        own = [read_pod(body) for body in bodies if self._membership.has(body)]
        return sorted(own, key=lambda pod: pod.name)

    def ready_trainer(self, namespace: str, model: str) -> Pod | None:
        """The model's trainer pod that takes requests, if there is one."""
        trainers = live(self.pods(namespace, "trainer", model=model))
        return next((pod for pod in trainers if pod.ready), None)

    def job(self, namespace: str, name: str) -> JobState | None:
        """The Job of that name."""
        body = self._cache.get(ObjectKey("Job", namespace, name))
        return read_job(body) if body is not None else None

    def _one(self, kind: type[T], namespace: str, name: str) -> T | None:
        key = ObjectKey(kind.__name__, namespace, name)
        return self._parse(kind, key) if self._cache.version(key) else None

    def _all(self, kind: type[T], namespace: str, **index: str) -> list[T]:
        keys = self._cache.keys(kind.__name__, namespace, **index)
        return [self._parse(kind, key) for key in keys]

    def _parse(self, kind: type[T], key: ObjectKey, body: Body | None = None) -> T:
        """The object as its type; ``body`` is the cached one, if the caller has it."""
        version = self._cache.version(key)
        cached = self._parsed.get(key)
        if cached is not None and cached[0] == version and isinstance(cached[1], kind):
            return cached[1]
        parsed = read(kind, body or self._cache.get(key) or {})
        self._parsed[key] = (version, parsed)
        return parsed

    def _follow(self, key: ObjectKey, old: Body | None, new: Body | None, _: ChangeSource) -> None:
        if new is None:
            self._parsed.pop(key, None)
        if key.kind == Checkpoint.__name__:
            self._reindex(key, old, new)
        if key.kind == TrainableModel.__name__ and new is not None:
            index = self._indexes.get((key.namespace, key.name))
            if index is not None:
                index.belong_to(new["metadata"].get("uid", ""))

    def _reindex(self, key: ObjectKey, old: Body | None, new: Body | None) -> None:
        """Parse each Checkpoint when its body arrives; at a start, between two pages."""
        models = {body["spec"]["modelRef"]["name"] for body in (old, new) if body is not None}
        for name in models:
            if (key.namespace, name) not in self._indexes:
                uid = self._model_uid(key.namespace, name)
                self._indexes[key.namespace, name] = LineageIndex(model_uid=uid)
            index = self._indexes[key.namespace, name]
            if index is None:
                continue
            try:
                if new is not None and new["spec"]["modelRef"]["name"] == name:
                    index.put(self._parse(Checkpoint, key, new))
                else:
                    index.remove(key.name)
            except UnreadableObjectError:
                # The next read of the lineage raises.
                self._indexes[key.namespace, name] = None
                continue
            if index.empty:
                del self._indexes[key.namespace, name]

    def _index(self, namespace: str, name: str) -> LineageIndex:
        """The model's index, kept up to date, and rebuilt once all Checkpoints can be read."""
        index = self._indexes.get((namespace, name))
        if index is None:
            uid = self._model_uid(namespace, name)
            index = LineageIndex(self._all(Checkpoint, namespace, model=name), uid)
            self._indexes[namespace, name] = index
        return index

    def _model_uid(self, namespace: str, name: str) -> str:
        body = self._cache.get(ObjectKey(TrainableModel.__name__, namespace, name))
        return str(body["metadata"].get("uid", "")) if body is not None else ""
