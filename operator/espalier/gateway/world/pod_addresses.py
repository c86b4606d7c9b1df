"""Whether a pod takes requests, where, and if not, why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from espalier.core.pods import main_container, pods

DEFAULT_PORT = 8000
# The reasons of a pod that is starting or shutting down; any other reason is a fault.
_PASSING = frozenset({"ContainersNotReady", "Terminating"})


@dataclass(frozen=True)
class NotReadyReason:
    """Why a pod is not ready: the Kubernetes reason and message."""

    reason: str
    message: str

    @property
    def fault(self) -> bool:
        """False if the pod is merely starting or shutting down."""
        return self.reason not in _PASSING


@dataclass(frozen=True)
class PodAddress:
    """A trainer or rollout pod. ``address`` is ``ip:port``, empty before it has an IP."""

    name: str
    uid: str
    role: str
    address: str
    waiting: NotReadyReason | None

    @property
    def ready(self) -> bool:
        """True when the pod takes requests."""
        return self.waiting is None and bool(self.address)


def read_pod(body: Mapping[str, Any]) -> PodAddress:
    """The pod as the gateway sees it, from its core/v1 body."""
    facts = pods.read_pod(body)
    return PodAddress(
        name=facts.name,
        uid=facts.uid,
        role=facts.role,
        address=f"{pods.url_host(facts.ip)}:{_port(body)}" if facts.ip else "",
        waiting=_waiting(facts),
    )


def why_none_ready(candidates: Iterable[PodAddress]) -> NotReadyReason | None:
    """Why no pod is ready; a fault takes precedence over loading. None if no pod waits."""
    waiting = [pod.waiting for pod in candidates if pod.waiting is not None]
    faults = [w for w in waiting if w.fault]
    return next(iter(faults or waiting), None)


def _port(body: Mapping[str, Any]) -> int:
    ports = main_container.declared(body).get("ports") or []
    return int(ports[0]["containerPort"]) if ports else DEFAULT_PORT


def _waiting(facts: pods.Pod) -> NotReadyReason | None:
    if facts.terminating:
        return NotReadyReason("Terminating", "the pod is shutting down")
    if facts.ready and not facts.finished:
        return None
    if facts.problem is not None:
        return NotReadyReason(facts.problem.reason, facts.problem.text)
    if facts.finished:
        return NotReadyReason("Finished", facts.message or "the pod has ended")
    if facts.waiting_reason not in ("", "Starting"):
        return NotReadyReason(facts.waiting_reason, facts.waiting)
    return NotReadyReason("ContainersNotReady", "loading: the container is not ready yet")
