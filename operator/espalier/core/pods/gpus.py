"""The GPUs that a pod holds, whoever makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of every vendor; a shared one counts whole, and so does each slice of one.
_RESOURCES = ("gpu", "gpu.shared")
_INTEL = ("gpu.intel.com/i915", "gpu.intel.com/xe")
_SLICES = "nvidia.com/mig-"


def held(body: Mapping[str, Any]) -> int:
    """How many GPUs, or slices of GPUs, the containers of a Pod are given for as long as it lives.

    Those that play a taskset are init containers which stay.
    """
    spec = body.get("spec", {})
    stay = (c for c in spec.get("initContainers", []) if c.get("restartPolicy") == "Always")
    containers = [*spec.get("containers", []), *stay]
    return sum(
        _count(amount)
        for container in containers
        for name, amount in container.get("resources", {}).get("limits", {}).items()
        if _is_gpu(name)
    )


def _is_gpu(name: str) -> bool:
    """Memory and cores of a GPU, which some plugins hand out as resources, are none."""
    _, slash, resource = name.rpartition("/")
    return name.startswith(_SLICES) or name in _INTEL or bool(slash and resource in _RESOURCES)


def _count(amount: object) -> int:
    """Extended resources are whole numbers; the API server takes no other."""
    text = str(amount)
    return int(text) if text.isdecimal() else 0
