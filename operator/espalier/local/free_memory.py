"""Decides as a scheduler would whether this machine has the memory that a pod requests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from espalier.kube.objects import Body
from espalier.local import quantity

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes that were free for pods before any ran."""

    free: int

    def shortage(self, asked: int, taken: int) -> str:
        """Why a pod that requests this much does not fit beside the others; empty if it does."""
        if asked <= self.free - taken:
            return ""
        return (
            f"Insufficient memory: it asks for {asked / GIB:.1f} GiB, and of {self.free / GIB:.1f} "
            f"GiB that were free when espalier dev started, other pods ask for "
            f"{taken / GIB:.1f} GiB: stop other programs and start espalier dev again, or lower "
            "spec.trainer or spec.rollout template.resources.requests.memory of the TrainableModel"
        )


def of_this_machine(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> Memory:
    """The free memory of the machine, or of the container that this process runs in."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    return Memory(min([free, *_left_in(cgroup)]))


def asked(spec: Body) -> int:
    """Bytes that a pod requests as a scheduler counts them; 0 if it requests none.

    Containers that stay beside the main one are added to it; those that prepare it run before.
    """
    inits = spec.get("initContainers") or ()
    beside = 0
    before = 0
    for init in inits:
        if init.get("restartPolicy") == "Always":
            beside += _requested(init)
        else:
            before = max(before, beside + _requested(init))
    return max(before, beside + _requested(spec["containers"][0]))


def _requested(container: Body) -> int:
    resources = container.get("resources") or {}
    wanted = resources.get("requests", {}).get("memory") or resources.get("limits", {}).get(
        "memory", 0
    )
    return round(quantity.number(str(wanted)))


def _left_in(cgroup: Path) -> list[int]:
    """Bytes up to the limit of the container; empty without a limit (or with cgroup v1)."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:
        return []
    # The page cache counts as used, and the kernel frees it when memory is short.
    return [] if limit == "max" else [int(limit) - used + int(stat["inactive_file"])]
