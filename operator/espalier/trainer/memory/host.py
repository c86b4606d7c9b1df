"""The memory that this rank may use: of its GPU, or of the pod's host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from espalier.trainer.problems import UserMistakeError

# Bytes that a batch may take beyond what the loaded model holds; overrides what is measured.
MEMORY_VARIABLE = "ESPALIER_MEMORY_BYTES"
# The rest is for the allocator's fragments and for what else the process does.
USABLE = 0.85
# Limit, use, and what of the use is file cache that the kernel drops under pressure.
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

    The override; else what the GPU has free; else the least of what the control group and the
    machine leave, shared by the pod's ``ranks``. A share of it is kept back.
    """
    given = environment.get(MEMORY_VARIABLE)
    if given is not None:
        if not given.isdecimal() or not int(given):
            raise UserMistakeError(
                "InvalidSettings",
                f"{MEMORY_VARIABLE} is {given!r}",
                "set it to the bytes that a batch may take beyond the loaded model, or unset it",
            )
        return int(given)
    return max(0, int(USABLE * free_memory(device, ranks)) - reserved)


def free_memory(device: torch.device, ranks: int) -> int:
    """Bytes that are free to a rank: of its GPU, or its part of the pod's host memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_memory(Path("/sys/fs/cgroup"), Path("/proc/meminfo")) // ranks


def free_host_memory(cgroup: Path, meminfo: Path) -> int:
    """Bytes until the control group's limit (version 2 or 1) or the machine's end."""
    free = []
    for limit, usage, stat, cache in _CGROUP_FILES:
        if (cgroup / limit).exists():
            given = (cgroup / limit).read_text().strip()
            if given != "max":
                used = int((cgroup / usage).read_text()) - _counter(cgroup / stat, cache)
                free.append(int(given) - used)
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free.append(1024 * int(line.split()[1]))
    return max(0, min(free))


def _counter(path: Path, name: str) -> int:
    counters = dict(line.split() for line in path.read_text().splitlines())
    return int(counters.get(name, 0))
