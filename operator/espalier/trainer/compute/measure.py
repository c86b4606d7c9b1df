"""Measures once at start what memory a row keeps, so equal batches are always cut alike."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.packing import Row, pack
from espalier.trainer.compute import retry
from espalier.trainer.memory import cost_model
from espalier.trainer.memory.cost_model import FLOAT32_BYTES, HeadChunks, ModelShape
from espalier.trainer.memory.host import read_available
from espalier.trainer.memory.planner import GIB, Heap, Planner
from espalier.trainer.memory.row_costs import Kept, PackedCosts, PaddedCosts, fit, padded_size
from espalier.trainer.policy.frozen_lm_head import CHUNK_ELEMENTS
from espalier.trainer.policy.policy import Policy

logger = logging.getLogger(__name__)

# Tokens in the prompt, and in the output, of the rows measured at start.
_SHORT = 64
# What the C allocator holds over the tensors that are predicted. The fast path was measured at up
# to 1.0 where blocks are large and 1.45 where none has 2 MiB, the padded path, whose blocks are of
# more sizes, at up to 1.2 and 1.9: tests/trainer/peak.py. Where layers are computed again large
# blocks are mapped (espalier.trainer.memory.allocator). Torch's allocator on a GPU splits exactly.
# Many short rows took up to 8 MiB more than their largest.
_BESIDES = 1 << 24
HEAPS = {"cpu": Heap(plain=1.6, checkpointing=1.15, besides=_BESIDES), "cuda": Heap()}
PADDED_HEAPS = {"cpu": Heap(plain=2.0, checkpointing=1.15, besides=_BESIDES), "cuda": Heap()}


def measure(policy: Policy, environment: Mapping[str, str] = os.environ) -> Planner:
    """The planner of a loaded policy, from measurements of short rows on its path."""
    fast = policy.warning is None
    costs = packed_costs(policy) if fast else padded_costs(policy)
    heap = (HEAPS if fast else PADDED_HEAPS)[policy.device.type]
    shape = costs.shape
    reserved = (
        cost_model.training_bytes(shape) // policy.sharding.size + policy.sharding.gathered_bytes()
    )
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    available = read_available(policy.device, environment, ranks=ranks, reserved=reserved)
    logger.info("memory for a batch: %.2f GiB, %s", available / GIB, costs)
    return Planner(costs, available, heap, policy.can_checkpoint)


def packed_costs(policy: Policy) -> PackedCosts:
    """Costs of the fast path, corrected by a measurement of one short row."""
    length = _length(policy)
    shape, row = policy_shape(policy), _row(policy, length, length)
    correction = kept_bytes(policy, row) / cost_model.saved_bytes(shape, cost_model.row_size(row))
    device = policy.device.type
    widened = device == "cpu" and shape.dtype_bytes < FLOAT32_BYTES
    return PackedCosts(shape, HeadChunks(CHUNK_ELEMENTS[device], widened), correction)


def padded_costs(policy: Policy) -> PaddedCosts:
    """Costs of the padded path, from three rows measured with and without their layers."""
    length = _length(policy)
    rows = [_row(policy, *sizes) for sizes in ((length // 2, 1), (length, 1), (1, length))]

    def kept() -> Kept:
        return fit([(padded_size(row), kept_bytes(policy, row)) for row in rows])

    whole = kept()
    # If layers cannot be recomputed, all kept memory counts as theirs.
    outside = Kept(0.0, 0.0, 0.0)
    if policy.can_checkpoint:
        with retry.checkpointing(policy, on=True):
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
    return cost_model.shape_of(
        causal_lm.config,
        dtype_bytes=causal_lm.get_input_embeddings().weight.dtype.itemsize,
        rank=policy.adapter.lora_rank,
        trained=sum(parameter.numel() for parameter in policy.parameters.values()),
    )


def kept_bytes(policy: Policy, row: Row) -> int:
    """Bytes of the distinct tensors, weights aside, that autograd keeps of a row's forward."""
    parts = [policy.sharding.own(parameter) for parameter in policy.causal_lm.parameters()]
    constant = [*parts, *policy.causal_lm.buffers()]
    weights = {tensor.untyped_storage().data_ptr() for tensor in constant}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.evaluate(row)
    return sum(
        tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in weights
    )
