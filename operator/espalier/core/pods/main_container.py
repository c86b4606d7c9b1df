"""The container of a pod whose state is the pod's: the main one, or of a Job one that goes before.

The main container has the name of the pod's role, an importer's is ``place``. It need not be the
first: what injects sidecars, Istio for one, may put its own before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from espalier.core.manifests import labels


def role(pod: Mapping[str, Any]) -> str:
    """The role that a Pod's label says; empty if none does."""
    found: str = pod["metadata"].get("labels", {}).get(labels.ROLE, "")
    return found


def declared(pod: Mapping[str, Any]) -> dict[str, Any]:
    """What the Pod's spec says of the main container; empty if there is none."""
    return _main(pod, pod.get("spec", {}).get("containers", []))


def observed(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The status of the container whose state is the pod's; empty before there is one."""
    status = pod.get("status", {})
    if pod.get("spec", {}).get("restartPolicy") == "Never":
        for one in before(status):
            ended = one.get("state", {}).get("terminated")
            # An importer works as long as it runs; of folders it counts only that they failed.
            if ended["exitCode"] if ended else one["name"] == labels.IMPORTER_CONTAINER:
                return one
    return _main(pod, status.get("containerStatuses", []))


def before(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The statuses of the containers of ours that run to their end before the main one."""
    found = status.get("initContainerStatuses", [])
    return [c for c in found if c.get("name") in labels.BEFORE_MAIN]


def started(status: Mapping[str, Any]) -> bool:
    """Whether a container has started, by its startup probe if it has one."""
    if status.get("name") in labels.BEFORE_MAIN:
        # It has no probe, and kubelets do not agree on what they say of it.
        return status.get("state", {}).get("running") is not None
    return bool(status.get("started"))


def _main(pod: Mapping[str, Any], containers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    by_name = {c["name"]: c for c in containers}
    # The importers of versions before did all in the container of that name.
    names = (labels.main_container(role(pod)), role(pod))
    return next(({**by_name[name]} for name in names if name in by_name), {})
