"""What a pod's status says about sending it a request, or why not yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from espalier.core.manifests.labels import ROLE

DEFAULT_PORT = 8000

# Reasons of a container that is on its way; any other waiting reason tells a fault.
_STARTING = frozenset({"ContainerCreating", "PodInitializing"})


@dataclass(frozen=True)
class Waiting:
    """Why a pod is not ready: the Kubernetes reason and message."""

    reason: str
    message: str


@dataclass(frozen=True)
class Pod:
    """A trainer or rollout pod. ``address`` is ``ip:port``, empty before it has an IP."""

    name: str
    role: str
    address: str
    waiting: Waiting | None

    @property
    def ready(self) -> bool:
        """True when the pod takes requests."""
        return self.waiting is None and bool(self.address)


def read_pod(body: Mapping[str, Any]) -> Pod:
    """The pod as the gateway sees it, from its core/v1 body."""
    metadata = body["metadata"]
    status = body.get("status") or {}
    ip = status.get("podIP", "")
    host = f"[{ip}]" if ":" in ip else ip
    return Pod(
        name=metadata["name"],
        role=(metadata.get("labels") or {}).get(ROLE, ""),
        address=f"{host}:{_port(body)}" if ip else "",
        waiting=_waiting(metadata, status),
    )


def _port(body: Mapping[str, Any]) -> int:
    containers = (body.get("spec") or {}).get("containers") or [{}]
    ports = containers[0].get("ports") or []
    return int(ports[0]["containerPort"]) if ports else DEFAULT_PORT


def _waiting(metadata: Mapping[str, Any], status: Mapping[str, Any]) -> Waiting | None:
    if metadata.get("deletionTimestamp"):
        return Waiting("Terminating", "the pod is shutting down")
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return Waiting(
            scheduled.get("reason", "Unschedulable"),
            scheduled.get("message", "the pod has no node yet"),
        )
    if status.get("phase") in ("Failed", "Succeeded"):
        return Waiting(
            status.get("reason", status["phase"]), status.get("message", "the pod has ended")
        )
    if conditions.get("Ready", {}).get("status") == "True":
        return None
    return _container_waiting(status) or Waiting(
        conditions.get("Ready", {}).get("reason", "ContainersNotReady"),
        "loading: the container runs and is not ready yet",
    )


def _container_waiting(status: Mapping[str, Any]) -> Waiting | None:
    containers = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    found = [w for w in (_of_container(c) for c in containers) if w is not None]
    faults = [w for w in found if w.reason not in _STARTING]
    return next(iter(faults or found), None)


def _of_container(container: Mapping[str, Any]) -> Waiting | None:
    state = container.get("state") or {}
    if waiting := state.get("waiting"):
        message = waiting.get("message") or _last_end(container) or "the container is being created"
        return Waiting(waiting.get("reason", "ContainerCreating"), message)
    terminated = state.get("terminated")
    if terminated and terminated.get("exitCode", 0) != 0:
        reason = terminated.get("reason", "Error")
        message = terminated.get("message") or f"exit code {terminated['exitCode']}"
        return Waiting(reason, message)
    return None


def _last_end(container: Mapping[str, Any]) -> str:
    last = (container.get("lastState") or {}).get("terminated") or {}
    return f"last exit code {last['exitCode']}" if "exitCode" in last else ""


def why_none_ready(pods: Iterable[Pod]) -> Waiting | None:
    """The reason of the pod that is furthest from help: a fault before mere loading."""
    waiting = [pod.waiting for pod in pods if pod.waiting is not None]
    faults = [
        w for w in waiting if w.reason not in _STARTING | {"ContainersNotReady", "Terminating"}
    ]
    return next(iter(faults or waiting), None)
