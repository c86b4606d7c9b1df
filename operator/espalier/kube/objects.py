"""Kinds that Espalier reads and writes, and the keys that name their objects.

Bodies are plain dicts at this edge, as the API server sends them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from espalier.api.meta import GROUP, VERSION

Body = dict[str, Any]


class ObjectKey(NamedTuple):
    """Names one object. A tuple, because its hash is taken dozens of times for every event."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"

    def fields(self) -> dict[str, str]:
        """The fields of a log entry about the object."""
        return {"kind": self.kind, "namespace": self.namespace, "object": self.name}


@dataclass(frozen=True)
class Resource:
    """Where the objects of a kind live in the API; all of ours are namespaced."""

    name: str
    group: str
    version: str
    plural: str

    @property
    def api_version(self) -> str:
        """``group/version``, or the version alone for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """The URL path of a collection (of all namespaces when None), object or subresource."""
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.api_version}"
        scope = f"/namespaces/{namespace}" if namespace else ""
        tail = "".join(f"/{part}" for part in (name, subresource) if part)
        return f"{root}{scope}/{self.plural}{tail}"


KINDS: Mapping[str, Resource] = {
    kind.name: kind
    for kind in (
        Resource("TrainableModel", GROUP, VERSION, "trainablemodels"),
        Resource("TrainingRun", GROUP, VERSION, "trainingruns"),
        Resource("CheckpointHead", GROUP, VERSION, "checkpointheads"),
        Resource("Checkpoint", GROUP, VERSION, "checkpoints"),
        Resource("Pod", "", "v1", "pods"),
        Resource("Service", "", "v1", "services"),
        Resource("Secret", "", "v1", "secrets"),
        Resource("ServiceAccount", "", "v1", "serviceaccounts"),
        Resource("Event", "", "v1", "events"),
        Resource("ConfigMap", "", "v1", "configmaps"),
        Resource("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims"),
        Resource("Job", "batch", "v1", "jobs"),
        Resource("StatefulSet", "apps", "v1", "statefulsets"),
        Resource("Deployment", "apps", "v1", "deployments"),
        Resource("ReplicaSet", "apps", "v1", "replicasets"),
        Resource("Workload", "kueue.x-k8s.io", "v1beta2", "workloads"),
        Resource("Lease", "coordination.k8s.io", "v1", "leases"),
    )
}


def kind_of(name: str) -> Resource:
    """The registered kind of this name; ValueError names the known ones."""
    try:
        return KINDS[name]
    except KeyError:
        raise ValueError(f"unknown kind {name!r}: one of {', '.join(KINDS)}") from None


def key_of(kind: str, body: Body) -> ObjectKey:
    """The key of an object of this kind."""
    metadata = body["metadata"]
    return ObjectKey(kind, metadata.get("namespace", ""), metadata["name"])


def owner_of(body: Body) -> ObjectKey | None:
    """The key of the object's controller, in the same namespace; None without one."""
    metadata = body["metadata"]
    for reference in metadata.get("ownerReferences", ()):
        if reference.get("controller"):
            return ObjectKey(reference["kind"], metadata.get("namespace", ""), reference["name"])
    return None


def controlled_by(owner: Body) -> Body:
    """The reference by which Kubernetes' controllers mark what they made."""
    metadata = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
    }


def label_selector(labels: Mapping[str, str] | None) -> str:
    """Labels as a selector of equalities: ``a=b,c=d``."""
    pairs: Iterable[tuple[str, str]] = sorted((labels or {}).items())
    return ",".join(f"{name}={value}" for name, value in pairs)


def without_managers(body: Body) -> Body:
    """The object without managedFields, which can be larger than all the rest and is never read."""
    metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    return {**body, "metadata": metadata}


def last_change(body: Body) -> datetime | None:
    """When the object was last written, to the second, by the API server's clock."""
    metadata = body["metadata"]
    times = [entry.get("time", "") for entry in metadata.get("managedFields", ())]
    newest = max([*times, metadata.get("creationTimestamp", "")])
    return datetime.fromisoformat(newest) if newest else None
