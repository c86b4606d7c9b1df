"""The container of a pod that does its work; it has the name of the pod's role.

It need not be the first: what injects sidecars, Istio for one, may put its own before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from espalier.core.manifests.labels import ROLE


def role(pod: Mapping[str, Any]) -> str:
    """The role that a Pod's label says; empty if none does."""
    found: str = pod["metadata"].get("labels", {}).get(ROLE, "")
    return found


def declared(pod: Mapping[str, Any]) -> dict[str, Any]:
    """What the Pod's spec says of it; empty if there is none."""
    return of_name(pod.get("spec", {}).get("containers", []), role(pod))


def observed(pod: Mapping[str, Any]) -> dict[str, Any]:
    """What the Pod's status says of it; empty until there is a status."""
    return of_name(pod.get("status", {}).get("containerStatuses", []), role(pod))


def of_name(containers: Iterable[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """The container of that name, or its status; empty if there is none."""
    return next(({**c} for c in containers if c.get("name") == name), {})
