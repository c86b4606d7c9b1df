"""Keeps a ServedWorld equal to the informer's cache, and lets requests wait for a change of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHead
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.changes import Changes
from espalier.core.manifests.labels import MODEL, ROLE, RUN
from espalier.core.pods.pod_membership import identity_of
from espalier.gateway.world.pod_addresses import read_pod
from espalier.gateway.world.world import NamespacedName, ServedWorld
from espalier.kube.cache import Cache, ChangeSource
from espalier.kube.objects import ObjectKey, key_of
from espalier.kube.own_pods import Membership

_log = logging.getLogger(__name__)

T = TypeVar("T")
Body = dict[str, Any]

# The roles of the pods that the gateway calls, and the kinds of the objects that own them.
ROLES = ("trainer", "rollout")
CHAIN = ("TrainableModel", "StatefulSet", "Deployment", "ReplicaSet")
RUNNER = "runner"
# Jobs are the controllers of runners, which the gateway does not call but is called by.
WATCHED = ("CheckpointHead", "Checkpoint", "TrainingRun", *CHAIN, "Job", "Pod")
# Of these kinds only objects with Espalier's labels are watched.
CHILDREN = ("StatefulSet", "Deployment", "ReplicaSet", "Job", "Pod")


class WorldWatch:
    """Keeps ``world`` equal to the cache. Everyone else only reads it."""

    def __init__(self, cache: Cache, namespaces: tuple[str, ...]) -> None:
        self.world = ServedWorld(namespaces)
        self._cache = cache
        self._membership = Membership(cache)
        self._changes = Changes()
        self._tables: dict[str, tuple[type[BaseModel], dict[NamespacedName, Any]]] = {
            "TrainableModel": (TrainableModel, self.world.models),
            "CheckpointHead": (CheckpointHead, self.world.heads),
            "Checkpoint": (Checkpoint, self.world.checkpoints),
            "TrainingRun": (TrainingRun, self.world.runs),
        }
        for kind in WATCHED:
            for body in cache.list(kind):
                name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
                self._update(ObjectKey(kind, namespace, name), None, body, ChangeSource.SEEN)
        cache.on_change(self._update)

    async def wait_for(self, read: Callable[[ServedWorld], T | None], seconds: float) -> T | None:
        """The first value that ``read`` finds, now or after a change; None when time is up."""
        try:
            async with asyncio.timeout(seconds):
                while (value := read(self.world)) is None:
                    await self._changes.wait()
        except TimeoutError:
            return None
        return value

    def run_of(self, pod: NamespacedName, uid: str) -> NamespacedName | None:
        """The run that a pod drives; None if no runner of ours has this name and uid now."""
        body = self._cache.get(ObjectKey("Pod", pod.namespace, pod.name))
        if body is None or not uid or body["metadata"].get("uid") != uid:
            return None
        labels = body["metadata"].get("labels") or {}
        if labels.get(ROLE) != RUNNER or not self._membership.has(body):
            return None
        return pod.beside(labels[RUN])

    def _update(self, key: ObjectKey, old: Body | None, new: Body | None, _: ChangeSource) -> None:
        if key.kind == "Pod":
            self._update_pod(key, old, new)
        elif key.kind in CHAIN and identity_of(old) != identity_of(new):
            self._update_pods(key, old, new)
        if key.kind in self._tables:
            self._update_object(key, new)
            for model in {_named_by(key, body) for body in (old, new) if body is not None}:
                self.world.revisions[model] += 1
            self.world.revision += 1
        self._changes.announce()

    def _update_object(self, key: ObjectKey, new: Body | None) -> None:
        schema, table = self._tables[key.kind]
        name = NamespacedName(key.namespace, key.name)
        before = table.pop(name, None)
        if isinstance(before, TrainableModel):
            self.world.uids.pop(before.metadata.uid, None)
        if new is None:
            return
        try:
            table[name] = parsed = schema.model_validate(new)
            if isinstance(parsed, TrainableModel):
                self.world.uids[parsed.metadata.uid] = name
        except ValidationError as error:
            # Only a CustomResourceDefinition of another version admits such an object.
            _log.error(
                "object does not fit its schema", extra={"object": str(key), "error": str(error)}
            )

    def _update_pod(self, key: ObjectKey, old: Body | None, new: Body | None) -> None:
        for body in (old, new):
            model = _model_of(key, body)
            if model is not None:
                self.world.pods.get(model, {}).pop(key.name, None)
        model = _model_of(key, new)
        if new is not None and model is not None and self._is_ours(new):
            self.world.pods.setdefault(model, {})[key.name] = read_pod(new)

    def _update_pods(self, key: ObjectKey, old: Body | None, new: Body | None) -> None:
        """An owner of a model's pods appeared or disappeared: check again which pods are ours."""
        models = {_model_of(key, body) for body in (old, new)}
        for model in [model for model in models if model is not None]:
            for body in self._cache.list("Pod", model.namespace, model=model.name):
                pod = key_of("Pod", body)
                self._update_pod(pod, body, body)

    def _is_ours(self, pod: Body) -> bool:
        return pod["metadata"]["labels"].get(ROLE) in ROLES and self._membership.has(pod)


def _model_of(key: ObjectKey, body: Body | None) -> NamespacedName | None:
    """The model that an object is, or says that it belongs to."""
    if body is not None and key.kind == "TrainableModel":
        return NamespacedName(key.namespace, key.name)
    labels = (body or {}).get("metadata", {}).get("labels") or {}
    return NamespacedName(key.namespace, labels[MODEL]) if MODEL in labels else None


def _named_by(key: ObjectKey, body: Body) -> NamespacedName:
    """The model that an object of ours is, or names in its spec."""
    reference = (body.get("spec") or {}).get("modelRef") or {}
    return NamespacedName(key.namespace, str(reference.get("name", key.name)))
