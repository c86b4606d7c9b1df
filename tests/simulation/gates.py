"""Pods and Jobs that wait in a queue, and a queue that lets them go."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from espalier.core.manifests.labels import ROLE
from espalier.kube.objects import Body, key_of

if TYPE_CHECKING:
    from tests.simulation.kubelet import Kubelet

# As the API server makes a pod with gates.
GATED: Body = {
    "phase": "Pending",
    "podIP": "",
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }
    ],
}


def gated(pod: Body) -> bool:
    return bool(pod["spec"].get("schedulingGates"))


def waiting(kubelet: Kubelet, role: str) -> list[Body]:
    """What waits of a role: its Job, or its pods."""
    jobs = [j for j in kubelet.bodies("Job") if j["metadata"]["labels"][ROLE] == role]
    held = [job for job in jobs if job["spec"].get("suspend")]
    return held or [pod for pod in kubelet.pods(role) if gated(pod)]


def admit(kubelet: Kubelet, role: str) -> None:
    """The queue lets go what waits of a role."""
    for body in waiting(kubelet, role):
        change = _resume if body["kind"] == "Job" else partial(_ungate, kubelet.started(role))
        kubelet.cluster.edit(key_of(body["kind"], body), change)


def _resume(body: Body) -> None:
    body["spec"].pop("suspend")


def _ungate(status: Body, body: Body) -> None:
    body["spec"].pop("schedulingGates")
    body["status"] = status
