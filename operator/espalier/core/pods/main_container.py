"""The container of a pod whose state is the pod's: the first, or of a Job one that works before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espalier.core.manifests import labels


def of(body: Mapping[str, Any]) -> dict[str, Any]:
    """Its status; empty before there is one."""
    declared, status = body.get("spec", {}).get("containers", []), body.get("status", {})
    if body.get("spec", {}).get("restartPolicy") == "Never":
        for one in before(status):
            ended = one.get("state", {}).get("terminated")
            # An importer works as long as it runs; of folders it counts only that they failed.
            if ended["exitCode"] if ended else one["name"] == labels.IMPORTER_CONTAINER:
                return one
    name = declared[0]["name"] if declared else None
    statuses = status.get("containerStatuses", [])
    found: dict[str, Any] = next((s for s in statuses if s.get("name") == name), {})
    return found


def before(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The statuses of the containers of ours that run to their end before the first."""
    found = status.get("initContainerStatuses", [])
    return [c for c in found if c.get("name") in labels.BEFORE_MAIN]


def started(status: Mapping[str, Any]) -> bool:
    """Whether a container has started, by its startup probe if it has one."""
    if status.get("name") in labels.BEFORE_MAIN:
        # It has no probe, and kubelets do not agree on what they say of it.
        return status.get("state", {}).get("running") is not None
    return bool(status.get("started"))
