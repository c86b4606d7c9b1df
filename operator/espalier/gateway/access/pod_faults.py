"""Reports a pod whose answer breaks the protocol: a 502 for the caller, and a log line and a metric
for the operators of the cluster."""

from __future__ import annotations

import logging

from espalier.gateway import prometheus
from espalier.gateway.problems import RefusalError
from espalier.gateway.world.world import ServedWorld
from espalier.podclient import PodFaultError

_log = logging.getLogger(__name__)


def refusal_of(world: ServedWorld, fault: PodFaultError) -> RefusalError:
    """502 that names the pod; also logs and counts the fault."""
    prometheus.POD_FAULTS.labels(fault.reason).inc()
    pod = _name(world, fault.address)
    _log.error("pod fault", extra={"pod": pod, "reason": fault.reason, "detail": fault.detail})
    return RefusalError(
        502,
        fault.reason,
        f"pod {pod} {fault.detail}, and nothing of it is passed on",
        "Look at the pod and its image: no pod of Espalier answers so",
    )


def _name(world: ServedWorld, address: str) -> str:
    for model, pods in world.pods.items():
        for name, pod in pods.items():
            if pod.address == address:
                return f"{model.namespace}/{name}"
    return f"at {address}"
