"""A pod as a process of this machine, and its status as a kubelet would write it."""

from __future__ import annotations

from dataclasses import dataclass, field

from espalier.core.manifests.labels import ROLE
from espalier.kube.objects import Body
from espalier.local.running import Running

SERVERS = ("trainer", "rollout")


@dataclass
class LocalPod:
    """A pod's process and restarts, which are not in its object."""

    address: str
    uid: str
    running: Running | None = None
    starts: int = 0
    began: float = 0.0
    resting_until: float = 0.0
    waiting: str = ""
    unschedulable: str = ""
    ended: tuple[int, str, str] | None = None
    over: bool = False
    started: bool = False
    ready: bool = False
    last_ready: float = 0.0
    template: Body = field(default_factory=dict)
    init_container: str = ""

    @property
    def role(self) -> str:
        """What it is there for."""
        role: str = self.template["metadata"]["labels"][ROLE]
        return role

    def status(self) -> Body:
        """The status that a kubelet would write."""
        container: Body = {
            "name": self.init_container or self.template["spec"]["containers"][0]["name"],
            "containerID": f"process://{self.running.pid if self.running else ''}/{self.starts}",
            "started": self.started,
        }
        phase = "Running"
        if self.running is not None:
            container["state"] = {"running": {}}
        elif self.unschedulable:
            phase = "Pending"
        elif self.waiting:
            phase = "Pending"
            waiting = {"reason": "ImageNotMapped", "message": self.waiting}
            container["state"] = {"waiting": waiting}
        if self.ended is not None:
            code, message, finished = self.ended
            ended = {"terminated": {"exitCode": code, "message": message, "finishedAt": finished}}
            if self.running is not None or self.waiting:
                container["lastState"] = ended
            elif self.role in SERVERS:
                # It will be started again, at the latest after the longest backoff.
                container["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
                container["lastState"] = ended
            else:
                container["state"] = ended
                phase = "Failed" if code else "Succeeded"
        conditions = [{"type": "Ready", "status": str(self.ready)}]
        if self.unschedulable:
            refused = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            conditions.append({**refused, "message": self.unschedulable})
        return {
            "phase": phase,
            "podIP": self.address,
            "conditions": conditions,
            **self._statuses(container),
        }

    def _statuses(self, container: Body) -> Body:
        """Where the status of a container stands: one that works before the main one has none yet.

        What an init container of ours leaves, as long as it is the last, is the pod's.
        """
        if not self.init_container:
            return {"containerStatuses": [container]}
        return {"initContainerStatuses": [container], "containerStatuses": []}
