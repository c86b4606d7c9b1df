"""A cache fed by hand: objects as the API server would show them."""

from __future__ import annotations

import itertools
from typing import Any

from espalier.api.checkpointhead import Agreed
from espalier.core.head.head_request import track
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName, ServedWorld
from espalier.kube.cache import Cache
from espalier.kube.objects import ObjectKey

Body = dict[str, Any]
HOME = "home"


def digest(seed: str) -> str:
    return "sha256:" + (seed * 64)[:64]


class World:
    """Puts objects into a cache; ``view`` follows it."""

    def __init__(self, *namespaces: str) -> None:
        self.cache = Cache()
        self.namespaces = namespaces or (HOME,)
        self.view = WorldWatch(self.cache, self.namespaces)
        self._versions = itertools.count(1)

    @property
    def served(self) -> ServedWorld:
        return self.view.world

    def put(self, kind: str, name: str, namespace: str = "", **fields: Any) -> None:
        metadata = {
            "name": name,
            "namespace": namespace or self.namespaces[0],
            "uid": f"uid-{name}",
            "resourceVersion": str(next(self._versions)),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            **fields.pop("metadata", {}),
        }
        self.cache.put(kind, {"metadata": metadata, **fields})

    def drop(self, kind: str, name: str, namespace: str = "") -> None:
        self.cache.drop(ObjectKey(kind, namespace or self.namespaces[0], name))

    def model(
        self, name: str, namespace: str = "", *, replicas: int = 1, **status: Any
    ) -> NamespacedName:
        spec = {
            "source": {"base": {"image": "registry.example/model:1"}},
            "storage": {"persistentVolumeClaim": {"claimName": "weights"}},
            "rollout": {"replicas": replicas},
        }
        self.put("TrainableModel", name, namespace, spec=spec, status=status)
        return NamespacedName(namespace or self.namespaces[0], name)

    def head(
        self,
        model: NamespacedName,
        current: str | None = "",
        *,
        step: int = 0,
        term: int = 1,
        agreed: Agreed | None = None,
        gate: Body | None = None,
        checkpoint: str = "",
        name: str = "",
        target: str | None = None,
    ) -> None:
        """A head that serves a digest (None: nothing yet) and has agreed to a request."""
        agreed = agreed or track()
        spec: Body = {"modelRef": {"name": model.name}, "mode": agreed.mode}
        if agreed.mode == "Pin":
            spec |= {"checkpointRef": {"name": agreed.name}, "onPin": agreed.on_pin}
        if gate:
            spec["gate"] = gate
        status: Body = {"term": term, "agreed": agreed.wire()}
        if current is not None:
            status["current"] = {
                "name": checkpoint,
                "step": step,
                "digest": current,
                "term": term,
            }
        if target is not None:
            status["target"] = {"name": target}
        self.put("CheckpointHead", name or model.name, model.namespace, spec=spec, status=status)

    def checkpoint(
        self,
        model: NamespacedName,
        name: str,
        content: str,
        *,
        step: int = 1,
        term: int = 1,
        metrics: dict[str, str] | None = None,
    ) -> None:
        """A Checkpoint; its status is written only if metrics are given."""
        spec = {
            "modelRef": {"name": model.name},
            "step": step,
            "branch": "main",
            "term": term,
            "uri": "pvc://weights/x",
            "digest": content,
        }
        fields: Body = {"spec": spec}
        if metrics is not None:
            listed = [{"name": key, "value": value} for key, value in metrics.items()]
            fields["status"] = {"observedGeneration": 1, "metrics": listed}
        self.put("Checkpoint", name, model.namespace, **fields)

    def run(
        self,
        model: NamespacedName,
        name: str,
        *,
        step: int = 0,
        suspend: bool = False,
        created: str = "2026-01-01T00:00:00Z",
        **given: Any,
    ) -> None:
        """A client-driven run; ``given`` is what it binds its client to."""
        spec = {
            "modelRef": {"name": model.name},
            "driver": "Client",
            "steps": 20,
            "suspend": suspend,
            **given,
        }
        self.put(
            "TrainingRun",
            name,
            model.namespace,
            metadata={"creationTimestamp": created},
            spec=spec,
            status={"step": step},
        )

    def workload(self, model: NamespacedName, role: str) -> Body:
        """What the operator and Kubernetes make for a role; the reference that its pods carry."""
        labels = {"espalier.dev/model": model.name, "espalier.dev/role": role}
        above = controlled_by("espalier.dev/v1alpha1", "TrainableModel", model.name)
        name = f"{model.name}-{role}"
        chain = ("StatefulSet",) if role == "trainer" else ("Deployment", "ReplicaSet")
        for kind in chain:
            metadata = {"labels": labels, "ownerReferences": [above]}
            self.put(kind, name, model.namespace, metadata=metadata, spec={})
            above = controlled_by("apps/v1", kind, name)
        return above

    def pod(
        self,
        model: NamespacedName,
        name: str,
        *,
        role: str = "rollout",
        ip: str = "10.0.0.1",
        port: int = 8000,
        **status: Any,
    ) -> None:
        """A pod of the model's workload; ready unless a status is given."""
        labels = {"espalier.dev/model": model.name, "espalier.dev/role": role}
        controller = self.workload(model, role)
        self.put(
            "Pod",
            name,
            model.namespace,
            metadata={
                "labels": labels,
                "ownerReferences": [controller],
                **status.pop("metadata", {}),
            },
            spec={"containers": [{"name": role, "ports": [{"containerPort": port}]}]},
            status={"podIP": ip, **(status or {"conditions": [condition("Ready", "True")]})},
        )


def controlled_by(api_version: str, kind: str, name: str) -> Body:
    """The reference to a controller that ``World.put`` has put."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": name,
        "uid": f"uid-{name}",
        "controller": True,
    }


def condition(kind: str, status: str, reason: str = "", message: str = "") -> Body:
    return {
        "type": kind,
        "status": status,
        "reason": reason or kind,
        "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


def waiting(reason: str, message: str = "", role: str = "rollout") -> Body:
    """The status of a role's container that waits."""
    return {"name": role, "state": {"waiting": {"reason": reason, "message": message}}}


def terminated(exit_code: int, message: str) -> Body:
    """The status of a rollout's container that has ended."""
    return {"name": "rollout", "state": {"terminated": {"exitCode": exit_code, "message": message}}}


LOADING = {
    "phase": "Running",
    "conditions": [condition("Ready", "False", "ContainersNotReady", "containers with unready")],
    "containerStatuses": [{"name": "rollout", "state": {"running": {}}}],
}
