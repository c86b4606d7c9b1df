"""What memory there is: read and measured once at start, so that equal batches are cut alike."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from espalier.trainer import exhaustion, plan
from espalier.trainer.costs import Kept, PackedCosts, PaddedCosts, fit, padded_size
from espalier.trainer.data import Datum
from espalier.trainer.head import CHUNK_ELEMENTS
from espalier.trainer.packing import Row, pack
from espalier.trainer.plan import FLOAT32_BYTES, HeadChunks, ModelShape
from espalier.trainer.planner import GIB, Heap, Planner
from espalier.trainer.problems import UserMistakeError
from espalier.trainer.ranks.world import read_world

if TYPE_CHECKING:
    from espalier.trainer.model import Policy

logger = logging.getLogger(__name__)

# Bytes that a batch may take beyond what the loaded model holds; overrides what is measured.
MEMORY_VARIABLE = "ESPALIER_MEMORY_BYTES"
# Tokens of the prompt, and of the output, of what is measured at start.
_SHORT = 64
# The rest is for the allocator's fragments and for what else the process does.
USABLE = 0.85
# What the C allocator holds over the tensors that are predicted. The fast path was measured at up
# to 1.0 where blocks are large and 1.45 where none has 2 MiB, the padded path, whose blocks are of
# more sizes, at up to 1.2 and 1.9: tests/trainer/peak.py. Where layers are computed again large
# blocks are mapped (espalier.trainer.allocator). Torch's allocator on a GPU splits exactly.
# Many short rows took up to 8 MiB more than their largest.
_BESIDES = 1 << 24
HEAPS = {"cpu": Heap(plain=1.6, checkpointing=1.15, besides=_BESIDES), "cuda": Heap()}
PADDED_HEAPS = {"cpu": Heap(plain=2.0, checkpointing=1.15, besides=_BESIDES), "cuda": Heap()}
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


def measure(policy: Policy, environment: Mapping[str, str] = os.environ) -> Planner:
    """The planner of a loaded policy, from what short rows keep on the path that it takes."""
    fast = policy.warning is None
    costs = packed_costs(policy) if fast else padded_costs(policy)
    heap = (HEAPS if fast else PADDED_HEAPS)[policy.device.type]
    shape = costs.shape
    held = plan.training_bytes(shape) // policy.sharding.size + policy.sharding.gathered_bytes()
    available = read_available(policy.device, environment, held)
    logger.info("memory for a batch: %.2f GiB, %s", available / GIB, costs)
    return Planner(costs, available, heap, policy.can_checkpoint)


def packed_costs(policy: Policy) -> PackedCosts:
    """Of the fast path, corrected by what one short row keeps."""
    length = _length(policy)
    shape, row = policy_shape(policy), _row(policy, length, length)
    correction = kept_bytes(policy, row) / plan.saved_bytes(shape, plan.row_size(row))
    device = policy.device.type
    widened = device == "cpu" and shape.dtype_bytes < FLOAT32_BYTES
    return PackedCosts(shape, HeadChunks(CHUNK_ELEMENTS[device], widened), correction)


def padded_costs(policy: Policy) -> PaddedCosts:
    """Of the padded path, from what three rows keep with and without their layers."""
    length = _length(policy)
    rows = [_row(policy, *sizes) for sizes in ((length // 2, 1), (length, 1), (1, length))]

    def kept() -> Kept:
        return fit([(padded_size(row), kept_bytes(policy, row)) for row in rows])

    whole = kept()
    # Of a family whose layers cannot be computed again all counts as theirs.
    outside = Kept(0.0, 0.0, 0.0)
    if policy.can_checkpoint:
        with exhaustion.checkpointing(policy, on=True):
            outside = kept()
    return PaddedCosts(policy_shape(policy), whole, outside)


def _length(policy: Policy) -> int:
    return min(_SHORT, policy.limits.context // 2)


def _row(policy: Policy, prompt: int, output: int) -> Row:
    """One sequence of so many tokens."""
    tokens = np.random.default_rng(0).integers(0, policy.limits.vocabulary, prompt + output)
    parts = tuple(tokens[:prompt].tolist()), tuple(tokens[prompt:].tolist())
    (row,) = pack([Datum(*parts, (), 0.0, 0.0, 0, None)], 2 * _SHORT)
    return row


def policy_shape(policy: Policy) -> ModelShape:
    """The shape of a policy's base and adapter."""
    causal_lm = policy.causal_lm
    return plan.shape_of(
        causal_lm.config,
        dtype_bytes=causal_lm.get_input_embeddings().weight.dtype.itemsize,
        rank=policy.adapter.lora_rank,
        trained=sum(parameter.numel() for parameter in policy.parameters.values()),
    )


def kept_bytes(policy: Policy, row: Row) -> int:
    """Bytes of the distinct tensors, weights aside, that autograd keeps of a row's forward."""
    parts = [policy.sharding.own(parameter) for parameter in policy.causal_lm.parameters()]
    held = [*parts, *policy.causal_lm.buffers()]
    weights = {tensor.untyped_storage().data_ptr() for tensor in held}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.evaluate(row)
    return sum(
        tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in weights
    )


def read_available(device: torch.device, environment: Mapping[str, str], reserved: int = 0) -> int:
    """Bytes that a batch may take, after ``reserved`` for the optimizer.

    The override; else what the GPU has free; else the least of what the control group and the
    machine leave, shared by the pod's ranks. A share of it is kept back.
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
    return max(0, int(USABLE * free_memory(device, read_world(environment).size)) - reserved)


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
