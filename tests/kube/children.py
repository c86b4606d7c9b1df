"""A model, a run and the children that the operator would make for them."""

from __future__ import annotations

from typing import Any

from espalier.api.meta import ObjectMeta
from espalier.api.trainablemodel import TrainableModel, TrainableModelSpec
from espalier.api.trainingrun import TrainingRun, TrainingRunSpec
from espalier.core.manifests.importer import importer_job
from espalier.core.manifests.installation import ChildSettings, Images
from espalier.core.manifests.runner import runner_job
from espalier.core.manifests.sampler import rollout_deployment, rollout_service
from espalier.core.manifests.trainer import trainer_service, trainer_statefulset

Body = dict[str, Any]

BASE = "sha256:" + "a" * 64
REVISION = "b" * 40
IMAGE_BASE = {"image": "registry.example/model:1"}
VOLUME_BASE = {"persistentVolumeClaim": {"claimName": "models", "path": "tiny/1"}}
HUB_BASE = {"huggingFace": {"repository": "Qwen/Qwen3-0.6B", "revision": REVISION}}
SETTINGS = ChildSettings(
    Images(trainer="trainer:1", rollout="rollout:1", runner="runner:1"),
    public_keys="-----BEGIN PUBLIC KEY-----",
    gateway_url="http://espalier-gateway.espalier.svc:80",
)


def model_of(namespace: str = "default", uid: str = "model-uid", **spec: Any) -> TrainableModel:
    body = {
        "source": {"base": IMAGE_BASE},
        "storage": {"persistentVolumeClaim": {"claimName": "espalier-weights"}},
        **spec,
    }
    return TrainableModel(
        metadata=ObjectMeta(name="arith", namespace=namespace, uid=uid),
        spec=TrainableModelSpec.model_validate(body),
    )


def run_of(namespace: str = "default", uid: str = "run-uid", **spec: Any) -> TrainingRun:
    body = {
        "modelRef": {"name": "arith"},
        "loss": {"name": "importance_sampling"},
        "learningRate": "1e-4",
        "steps": 2,
        "taskset": {"seed": 1, "configMap": {"name": "tasks"}},
        **spec,
    }
    return TrainingRun(
        metadata=ObjectMeta(name="arith-20", namespace=namespace, uid=uid),
        spec=TrainingRunSpec.model_validate(body),
    )


def children_of(model: TrainableModel, run: TrainingRun) -> list[Body]:
    return [
        trainer_service(model),
        trainer_statefulset(model, SETTINGS, base=BASE, replicas=1),
        rollout_service(model),
        rollout_deployment(model, SETTINGS, base=BASE),
        importer_job(model, SETTINGS),
        runner_job(run, model, SETTINGS),
    ]


def pod_of(child: Body) -> Body:
    pod: Body = child["spec"]["template"]["spec"]
    return pod


def container_of(child: Body, name: str = "") -> Body:
    """The container of its pod that has the name, or by default the main one."""
    pod = pod_of(child)
    (main,) = pod["containers"]
    every = (main, *pod.get("initContainers", ()))
    (found,) = [container for container in every if container["name"] == (name or main["name"])]
    return dict(found)


def seen(container: Body) -> dict[str, tuple[str, bool]]:
    """By path of a container, the folder of the model's claim there, and whether it is written."""
    return {
        mount["mountPath"]: (mount.get("subPath", ""), not mount.get("readOnly", False))
        for mount in container["volumeMounts"]
        if mount["name"] == "weights"
    }


def environment(child: Body, name: str = "") -> dict[str, str]:
    """Its variables; one that stands for a field of the pod has the field's path in brackets.

    Without those that are kept in Secrets and ConfigMaps.
    """
    container = container_of(child, name)
    values = {entry["name"]: _value(entry) for entry in container["env"]}
    return {name: value for name, value in values.items() if value is not None}


def _value(entry: Body) -> str | None:
    if field := entry.get("valueFrom", {}).get("fieldRef"):
        return f"<{field['fieldPath']}>"
    value: str | None = entry.get("value")
    return value
