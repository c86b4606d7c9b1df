"""The trainer: a StatefulSet of one, so that two never write to the same log, and its Service."""

from __future__ import annotations

import json
from collections.abc import Sequence

from espalier.api.trainablemodel import TrainableModel
from espalier.core.manifests.folders import folders_container, to_train
from espalier.core.manifests.installation import ChildSettings
from espalier.core.manifests.intent import Manifest, child
from espalier.core.manifests.labels import child_labels
from espalier.core.manifests.pod import (
    PORT,
    PORT_NAME,
    Container,
    Requests,
    claim,
    http_probe,
    model_env,
    pod_metadata,
    pod_spec,
    public_keys,
    startup_probe,
)
from espalier.core.manifests.queue import gated, pods_alone
from espalier.core.names import trainer_name

_REQUESTS = Requests("500m", "1Gi")
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
    model: TrainableModel,
    settings: ChildSettings,
    *,
    base: str,
    replicas: int,
    others: Sequence[str] = (),
) -> Manifest:
    """The trainer of a model on a base given by its digest; ``replicas`` is 1 to train, else 0.

    It reads checkpoints of the models named by ``others`` too.
    """
    name, labels = trainer_name(model.metadata.name), child_labels("trainer", model.metadata.name)
    trainer = model.spec.trainer
    env = model_env(model, settings, base=base, dtype=trainer.dtype)
    container = Container(
        name="trainer",
        image=settings.images.trainer,
        requests=_REQUESTS,
        env={**env, "ESPALIER_ADAPTER": json.dumps(model.spec.adapter.wire(), sort_keys=True)},
        mounts=(*to_train(model, base, others), *public_keys(settings)),
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
                init_containers=(
                    folders_container(
                        claim(model),
                        model.metadata.name,
                        container.image,
                        trainer.template,
                        base=base,
                        others=others,
                        writes=True,
                    ),
                ),
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
