"""Reads how much memory is free to this rank, on its GPU or on the host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from espalier.trainer.problems import UserMistakeError

# Overrides what is read: the bytes that a batch may take beyond the loaded model.
MEMORY_VARIABLE = "ESPALIER_MEMORY_BYTES"
# The rest is left for fragmentation and for everything else in the process.
USABLE = 0.85
# The files of limit, usage and statistics, and the statistic of droppable file cache in usage.
_CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def read_available(
    device: torch.device, environment: Mapping[str, str], *, ranks: int = 1, reserved: int = 0
) -> int:
    """Bytes that a batch may take, after ``reserved`` for the optimizer.

    The override if there is one; else ``USABLE`` of the GPU's free memory, or of the free host
    memory divided by ``ranks``.
    """
    override = environment.get(MEMORY_VARIABLE)
    if override is not None:
        if not override.isdecimal() or not int(override):
            raise UserMistakeError(
                "InvalidSettings",
                f"{MEMORY_VARIABLE} is {override!r}",
                "set it to the bytes that a batch may take beyond the loaded model, or unset it",
            )
        return int(override)
    return max(0, int(USABLE * free_memory(device, ranks)) - reserved)


def free_memory(device: torch.device, ranks: int) -> int:
    """Free bytes of this rank's GPU, or its share of the pod's free host memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_memory(Path("/sys/fs/cgroup"), Path("/proc/meminfo")) // ranks


def free_host_memory(cgroup: Path, meminfo: Path) -> int:
    """Free bytes: the least of the control group's (version 2 or 1) and the machine's."""
    free = []
    for limit, usage, stat, cache in _CGROUP_FILES:
        if (cgroup / limit).exists():
            allowed = (cgroup / limit).read_text().strip()
            if allowed != "max":
                used = int((cgroup / usage).read_text()) - _counter(cgroup / stat, cache)
                free.append(int(allowed) - used)
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free.append(1024 * int(line.split()[1]))
    return max(0, min(free))


def _counter(path: Path, name: str) -> int:
    counters = dict(line.split() for line in path.read_text().splitlines())
    return int(counters.get(name, 0))
