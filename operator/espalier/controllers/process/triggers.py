"""Which objects a change concerns: from a changed object to the keys to reconcile."""

from __future__ import annotations

from collections.abc import Iterator

from espalier.controllers.peers.commit_streams import COMMITS
from espalier.core.checkpoints.disposal import DISPOSAL
from espalier.core.lineage.measurements import named
from espalier.core.manifests.labels import MANAGED, MEASURED_ANNOTATION, MODEL, ROLE, RUN
from espalier.core.pods.pod_membership import identity_of
from espalier.core.run.runner_needs import judged_by
from espalier.kube.cache import Cache
from espalier.kube.objects import Body, ObjectKey, key_of, owner_of
from espalier.kube.own_pods import WORKLOADS

WATCHED: dict[str, dict[str, str]] = {
    "TrainableModel": {},
    "TrainingRun": {},
    "CheckpointHead": {},
    "Checkpoint": {},
    "Pod": MANAGED,
    "Job": MANAGED,
    "StatefulSet": MANAGED,
    "Deployment": MANAGED,
    "ReplicaSet": MANAGED,
    "Service": MANAGED,
}


def concerned(
    cache: Cache, key: ObjectKey, old: Body | None, new: Body | None
) -> Iterator[ObjectKey]:
    """Every key that a change may concern; an unnecessary key is harmless."""
    body = new if new is not None else old
    if body is None:
        return
    if key.kind == "TrainableModel":
        yield from _of_model(cache, key, old, new)
    elif key.kind == "TrainingRun":
        yield key
        yield from _model_and_runs(cache, key.namespace, _model(body))
    elif key.kind == "CheckpointHead":
        yield from _of_head(cache, key, old, new)
    elif key.kind == "Checkpoint":
        yield from _of_checkpoint(cache, key, old, new)
    elif key.kind == "Pod":
        yield from _of_pod(cache, key, body)
    elif key.kind in WORKLOADS and identity_of(old) != identity_of(new):
        # Which of the pods are Espalier's own may have changed with it.
        yield from _of_pod(cache, key, body)
        yield from _of_owner(key, body)
    else:
        yield from _of_owner(key, body)


def _of_owner(key: ObjectKey, body: Body) -> Iterator[ObjectKey]:
    if owner := owner_of(body):
        yield owner
    elif body["metadata"].get("labels", {}).get(ROLE) == "collector":
        yield ObjectKey(DISPOSAL, key.namespace, body["metadata"]["labels"].get(MODEL, ""))


def _of_model(
    cache: Cache, key: ObjectKey, old: Body | None, new: Body | None
) -> Iterator[ObjectKey]:
    yield key
    yield ObjectKey(COMMITS, key.namespace, key.name)
    yield ObjectKey(DISPOSAL, key.namespace, key.name)
    if old is None or new is None:
        yield from _judged(cache, key)
    if _policy(old) != _policy(new):
        yield from _keys(cache, "Checkpoint", key.namespace, key.name)
        origin = (new or old or {}).get("spec", {}).get("source", {}).get("checkpointRef", {})
        if origin:
            yield ObjectKey("Checkpoint", key.namespace, origin["name"])
    # A head of that name, which may be of another model.
    yield ObjectKey("CheckpointHead", key.namespace, key.name)
    yield from _keys(cache, "CheckpointHead", key.namespace, key.name)
    yield from _keys(cache, "TrainingRun", key.namespace, key.name)
    yield from _forks_of_model(cache, key.namespace, key.name)


def _of_head(
    cache: Cache, key: ObjectKey, old: Body | None, new: Body | None
) -> Iterator[ObjectKey]:
    yield key
    body = new or old or {}
    name = _model(body)
    yield from _keys(cache, "CheckpointHead", key.namespace, name)
    yield from _model_and_runs(cache, key.namespace, name)
    yield ObjectKey("TrainableModel", key.namespace, key.name)
    before, after = _served(old), _served(new)
    if before[1:] != after[1:]:
        yield from _keys(cache, "Checkpoint", key.namespace, name)
    elif before != after:
        served = {before[0], after[0]} - {""}
        yield from (ObjectKey("Checkpoint", key.namespace, checkpoint) for checkpoint in served)


def _of_checkpoint(
    cache: Cache, key: ObjectKey, old: Body | None, new: Body | None
) -> Iterator[ObjectKey]:
    body = new or old or {}
    if new is not None:
        yield key
    if old is None:
        # Its step measured other checkpoints, whose statuses show those figures.
        measured = body["metadata"].get("annotations", {}).get(MEASURED_ANNOTATION, "")
        yield from (ObjectKey("Checkpoint", key.namespace, other) for other in named(measured))
    name = _model(body)
    yield from _keys(cache, "CheckpointHead", key.namespace, name)
    yield from _model_and_runs(cache, key.namespace, name)
    yield from _forks_of(cache, key.namespace, key.name)
    # Models see the checkpoints of others that their runs name.
    for run in cache.keys("TrainingRun", key.namespace, reference=key.name):
        yield run
        yield ObjectKey("TrainableModel", key.namespace, _model(cache.get(run) or {}))


def _of_pod(cache: Cache, key: ObjectKey, body: Body) -> Iterator[ObjectKey]:
    labels = body["metadata"].get("labels", {})
    if run := labels.get(RUN):
        yield ObjectKey("TrainingRun", key.namespace, run)
        return
    if name := labels.get(MODEL):
        yield from _model_and_runs(cache, key.namespace, name)
        yield from _keys(cache, "CheckpointHead", key.namespace, name)


def _model_and_runs(cache: Cache, namespace: str, name: str) -> Iterator[ObjectKey]:
    yield ObjectKey("TrainableModel", namespace, name)
    yield from _keys(cache, "TrainingRun", namespace, name)


def _keys(cache: Cache, kind: str, namespace: str, model: str) -> Iterator[ObjectKey]:
    yield from cache.keys(kind, namespace, model=model)


def _judged(cache: Cache, model: ObjectKey) -> Iterator[ObjectKey]:
    """Runs with a reward for which a model, which has come or is gone, is asked."""
    for body in cache.list("TrainingRun", model.namespace):
        if model.name in judged_by(body["spec"]):
            yield key_of("TrainingRun", body)


def _forks_of_model(cache: Cache, namespace: str, model: str) -> Iterator[ObjectKey]:
    """Models, and their heads, that fork from any checkpoint of a model."""
    for body in cache.list("TrainableModel", namespace):
        origin = body["spec"]["source"].get("checkpointRef", {}).get("name", "")
        parent = cache.get(ObjectKey("Checkpoint", namespace, origin)) if origin else None
        if parent is not None and _model(parent) == model:
            yield from _fork(cache, namespace, body["metadata"]["name"])


def _forks_of(cache: Cache, namespace: str, checkpoint: str) -> Iterator[ObjectKey]:
    """Models, and their heads, that fork from a checkpoint."""
    for fork in cache.keys("TrainableModel", namespace, origin=checkpoint):
        yield from _fork(cache, namespace, fork.name)


def _fork(cache: Cache, namespace: str, name: str) -> Iterator[ObjectKey]:
    yield ObjectKey("TrainableModel", namespace, name)
    yield from _keys(cache, "CheckpointHead", namespace, name)


def _model(body: Body) -> str:
    name: str = body.get("spec", {}).get("modelRef", {}).get("name", "")
    return name


def _policy(body: Body | None) -> str | None:
    """A model's deletionPolicy; None without the model."""
    return None if body is None else str(body["spec"].get("deletionPolicy", ""))


def _served(body: Body | None) -> tuple[str, str, str]:
    """The parts of a head that checkpoints depend on: its current checkpoint and live line."""
    status = (body or {}).get("status", {})
    return (
        status.get("current", {}).get("name", ""),
        status.get("branch", ""),
        status.get("branchBase", {}).get("name", ""),
    )
