"""The trainer: a StatefulSet of one, so that two never write to the same log, and its Service."""

from __future__ import annotations

import json

from espalier.api.podtemplate import BOUNDED, PodTemplate, Resources
from espalier.api.trainablemodel import TrainableModel
from espalier.core.manifests.installation import ChildSettings
from espalier.core.manifests.intent import Manifest, child
from espalier.core.manifests.labels import child_labels
from espalier.core.manifests.pod import (
    PORT,
    PORT_NAME,
    VOLUME_PATH,
    Container,
    Requests,
    claim,
    http_probe,
    model_env,
    own_folders,
    pod_metadata,
    pod_spec,
    public_keys,
    startup_probe,
    weights_to_read,
)
from espalier.core.manifests.queue import gated, pods_alone
from espalier.core.names import trainer_name

_REQUESTS = Requests("500m", "1Gi")
_FOLDERS_REQUESTS = Requests("50m", "64Mi")
_FOLDERS = ("python", "-m", "espalier.trainer.jobs.own_folders")
# One rank is what the image runs by itself.
_RANKS = ("python", "-m", "espalier.trainer.ranks", "--ranks")
# A step may keep all cores busy; /healthz tells a long step from one that is stuck.
_PROBES = {
    "readinessProbe": http_probe("/readyz", period=2, failures=3),
    "livenessProbe": http_probe("/healthz", period=20, failures=6, timeout=10),
}


def trainer_service(model: TrainableModel) -> Manifest:
    """The trainer's address: ``<model>-trainer.<namespace>.svc:8000``.

    It has a cluster address, because a name that led to the pod would be cached past its restart.
    """
    name, labels = trainer_name(model.metadata.name), child_labels("trainer", model.metadata.name)
    spec = {
        "type": "ClusterIP",
        "selector": labels,
        "ports": [{"name": PORT_NAME, "port": PORT, "targetPort": PORT_NAME}],
    }
    return child(
        "v1",
        "Service",
        name,
        labels=labels,
        owner_kind="TrainableModel",
        owner=model.metadata,
        spec=spec,
    )


def trainer_statefulset(
    model: TrainableModel, settings: ChildSettings, *, base: str, replicas: int
) -> Manifest:
    """The trainer of a model on a base given by its digest; ``replicas`` is 1 to train, else 0."""
    name, labels = trainer_name(model.metadata.name), child_labels("trainer", model.metadata.name)
    trainer = model.spec.trainer
    env = model_env(model, settings, base=base, dtype=trainer.dtype)
    container = Container(
        name="trainer",
        image=settings.images.trainer,
        requests=_REQUESTS,
        env={**env, "ESPALIER_ADAPTER": json.dumps(model.spec.adapter.wire(), sort_keys=True)},
        mounts=(*weights_to_read(model), *own_folders(model), *public_keys(settings)),
        command=(*_RANKS, str(trainer.ranks)) if trainer.ranks > 1 else (),
        serves=True,
        probes={"startupProbe": startup_probe(trainer.startup_seconds, period=2), **_PROBES},
    )
    spec = {
        "replicas": replicas,
        "serviceName": name,
        # In order, a pod that never gets ready would block the update that repairs it.
        "podManagementPolicy": "Parallel",
        "revisionHistoryLimit": 1,
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": pods_alone(pod_metadata(labels, trainer.template), trainer.template),
            "spec": pod_spec(
                container,
                trainer.template,
                grace_seconds=60,
                init_containers=(_folders(model, settings),),
                pull_secrets=settings.pull_secrets,
                assigned_ids=settings.assigned_ids,
                tmp_size=settings.tmp_size,
            )
            | gated(trainer.template),
        },
    }
    return child(
        "apps/v1",
        "StatefulSet",
        name,
        labels=labels,
        owner_kind="TrainableModel",
        owner=model.metadata,
        spec=spec,
    )


def _folders(model: TrainableModel, settings: ChildSettings) -> Container:
    """Makes the folders that the trainer alone may write; it sees the whole volume, and ends."""
    return Container(
        name="folders",
        image=settings.images.trainer,
        requests=_FOLDERS_REQUESTS,
        env={"ESPALIER_VOLUME": VOLUME_PATH, "ESPALIER_MODEL": model.metadata.name},
        mounts=(claim(model),),
        command=_FOLDERS,
        resources=_without_devices(model.spec.trainer.template),
    )


def _without_devices(template: PodTemplate | None) -> Resources | None:
    """As the trainer's own, for a quota counts every container; its GPUs wait for it alone."""
    given = template.resources if template else None
    if given is None:
        return None
    return Resources(
        requests={name: q for name, q in given.requests.items() if name in BOUNDED},
        limits={name: q for name, q in given.limits.items() if name in BOUNDED},
    )
