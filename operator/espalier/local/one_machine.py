"""What a manifest may ask of a cluster and one machine has not: refused by its field. Pure.

What is left of a pod's template is honoured: ``env``, ``labels``, ``annotations`` and requests of
memory. Shares of cores and limits are the machine's own business, as in a cluster without quotas.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from espalier.api.podtemplate import BOUNDED
from espalier.api.trainingrun import TrainingRunSpec
from espalier.core.run.runner_needs import TASKSET_INVALID, peers
from espalier.kube.objects import Body
from espalier.local.layout import NAMESPACE

TEMPLATED = ("trainer", "rollout", "jobs", "runner")
_NO_NODES = "one machine has no nodes to choose from: remove it here, and set it in a cluster"
# By field of a pod's template, why it would mean nothing.
OF_CLUSTERS = {
    "queueName": "there is no queue on one machine: remove it here, and set it in a cluster with "
    "Kueue",
    "nodeSelector": _NO_NODES,
    "tolerations": _NO_NODES,
    "affinity": _NO_NODES,
    "topologySpreadConstraints": _NO_NODES,
    "priorityClassName": "no pod makes room for another on one machine: remove it here, and set it "
    "in a cluster",
    "runtimeClassName": "pods are plain processes on one machine: remove it here, and set it in a "
    "cluster",
    "imagePullSecrets": "no image is pulled on one machine: remove it here, and give --image "
    "IMAGE=DIRECTORY",
}
_DEVICES = (
    "devices are not given out on one machine, where every process sees all of them: remove it "
    "here, and set it in a cluster"
)


def elsewhere(metadata: Body) -> str:
    """Why an object of another namespace is refused; empty for one of the only one."""
    namespace = metadata.get("namespace", NAMESPACE)
    if namespace == NAMESPACE:
        return ""
    return (
        f"metadata.namespace: {NAMESPACE} is the only namespace on one machine, and this is "
        f"{namespace}: remove it here, and give it to kubectl in a cluster"
    )


def lacking(spec: Body, read: BaseModel) -> str:
    """The first field that one machine cannot honour, with the remedy; empty if there is none.

    Args:
        spec: of an object, as it is written.
        read: the same spec by its type.
    """
    return next(_lacking(spec, read), "")


def _lacking(spec: Body, read: BaseModel) -> Iterator[str]:
    for part in TEMPLATED:
        template = (spec.get(part) or {}).get("template") or {}
        place = f"spec.{part}.template"
        for name, why in OF_CLUSTERS.items():
            if template.get(name):
                yield f"{place}.{name}: {why}"
        yield from _devices(f"{place}.resources", template.get("resources") or {})
    if isinstance(read, TrainingRunSpec):
        yield from _of_a_run(spec, read)


def _of_a_run(spec: Body, read: TrainingRunSpec) -> Iterator[str]:
    for where, taskset in _tasksets(spec):
        for name in ("python", "verifiers"):
            resources = (taskset.get(name) or {}).get("resources") or {}
            yield from _devices(f"{where}.{name}.resources", resources)
    for peer in peers(read):
        if peer.kind == "Service":
            instead = (
                "play the tasks by taskset.python"
                if peer.reason == TASKSET_INVALID
                else "score by a reward of another kind, such as python"
            )
            yield (
                f"{peer.field}: there is no Service on one machine: {instead} here, or apply it in "
                "a cluster"
            )


def _tasksets(spec: Body) -> Iterator[tuple[str, Body]]:
    """The tasks of a run and of its evaluations, as they are written, by field."""
    yield "spec.taskset", spec.get("taskset") or {}
    for one in spec.get("evaluation") or ():
        yield f"spec.evaluation[{one['name']}].taskset", one.get("taskset") or {}


def _devices(where: str, resources: Body) -> Iterator[str]:
    for part in ("requests", "limits"):
        for name in resources.get(part) or {}:
            if name not in BOUNDED:
                yield f"{where}.{part}[{name}]: {_DEVICES}"
