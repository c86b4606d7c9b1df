"""Measures once, at start, what autograd keeps of a policy's rows."""

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
from espalier.trainer.memory import allocator, cost_model
from espalier.trainer.memory.cost_model import FLOAT32_BYTES, TRAINED_BYTES, ModelShape
from espalier.trainer.memory.host import read_available
from espalier.trainer.memory.planner import GIB, Heap, Planner
from espalier.trainer.memory.row_costs import HeadBytes, Kept, RowCosts, fit
from espalier.trainer.policy.frozen_lm_head import CHUNK_ELEMENTS
from espalier.trainer.policy.policy import Policy

logger = logging.getLogger(__name__)

# Tokens of the longer chains that are measured; the shorter chain has half as many.
_LONG = 64
# Many short branches make the copied prefixes a large part of what is kept, as in large groups.
_BRANCHES = 16
HEAPS = {
    "cpu": Heap(allocator.PLAIN_FACTOR, allocator.CHECKPOINTING_FACTOR, allocator.MARGIN_BYTES),
    "cuda": Heap(),
}


def measure(policy: Policy, environment: Mapping[str, str] = os.environ) -> Planner:
    """The planner of a loaded policy; reads once what memory is available."""
    costs = row_costs(policy)
    training = TRAINED_BYTES * costs.shape.trained // policy.sharding.size
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    available = read_available(
        policy.device,
        environment,
        ranks=ranks,
        reserved=training + policy.sharding.gathered_bytes(),
    )
    logger.info(
        "memory for a batch: %.2f GiB; kept: %s, of it outside the layers: %s",
        available / GIB,
        costs.whole,
        costs.outside,
    )
    return Planner(costs, available, HEAPS[policy.device.type], policy.can_checkpoint)


def row_costs(policy: Policy) -> RowCosts:
    """The costs of rows on the policy's path, from short rows with and without checkpointing."""
    shape, fast = policy_shape(policy), policy.warning is None
    size_of = cost_model.row_size if fast else cost_model.padded_size
    # The padded path copies no keys, and would compute the prompt of every branch.
    rows = _measured_rows(policy) if fast else _measured_rows(policy)[:-1]

    def kept() -> Kept:
        return fit([(size_of(row), kept_bytes(policy, row)) for row in rows])

    whole = kept()
    # If the layers cannot be computed again, everything counts as kept by the layers.
    outside = Kept(0.0, 0.0, 0.0, 0.0)
    if policy.can_checkpoint:
        with retry.checkpointing(policy, on=True):
            outside = kept()
    device = policy.device.type
    head = chunked_head(shape, device) if fast else _padded_head(shape, outside)
    targets = max(rows, key=lambda row: len(row.targets) / len(row.tokens))
    more = kept_bytes(policy, targets, by_entropy=True) - kept_bytes(policy, targets)
    return RowCosts(shape, size_of, whole, outside, head, max(0, more) / len(targets.targets))


def chunked_head(shape: ModelShape, device: str) -> HeadBytes:
    """The head of the fast path: a chunk of logits, its copies, and the hidden rows it reads."""
    narrow, wide = shape.dtype_bytes < FLOAT32_BYTES, shape.wide_bytes
    # Logits, probabilities and their narrow copy. A frozen wide head reuses the buffer of logits.
    copies = 3 if narrow else 1 if shape.rank else 2
    # A CPU multiplies in float32, so it copies a narrower weight.
    widened = shape.vocabulary * shape.hidden * wide if device == "cpu" and narrow else 0
    return HeadBytes(
        fixed=_head_gradient(shape) + widened,
        token=0.0,
        target=shape.hidden * wide,
        logits=copies * shape.vocabulary * wide,
        chunk=max(1, CHUNK_ELEMENTS[device] // shape.vocabulary),
    )


def _padded_head(shape: ModelShape, outside: Kept) -> HeadBytes:
    """The head of the padded path: the logits of all tokens, and gradients of the logits read.

    The gradients of capped logits, which autograd keeps, are as large as what it keeps.
    """
    return HeadBytes(
        fixed=_head_gradient(shape),
        token=shape.vocabulary * shape.dtype_bytes + outside.token,
        target=shape.vocabulary * (shape.dtype_bytes + 2 * shape.wide_bytes),
    )


def _head_gradient(shape: ModelShape) -> int:
    """The gradients of a trained head and of the embedding, before they are accumulated."""
    return 0 if shape.rank else 2 * shape.vocabulary * shape.hidden * shape.wide_bytes


def _measured_rows(policy: Policy) -> list[Row]:
    """A short chain, a long one, one with more targets, and a long prompt with short branches."""
    long = min(_LONG, policy.limits.context // 2)
    tokens = np.random.default_rng(0).integers(0, policy.limits.vocabulary, 2 * long).tolist()

    def row(prompt: int, output: int, count: int = 1) -> Row:
        starts = range(prompt, prompt + output * count, output)
        data = [
            Datum(tuple(tokens[:prompt]), tuple(tokens[s : s + output]), (), 0.0, 0.0, 0, None)
            for s in starts
        ]
        (packed,) = pack(data, len(tokens))
        return packed

    branch = max(1, long // _BRANCHES)
    short = row(max(1, long // 2), 1)
    return [short, row(long, 1), row(1, long), row(long, branch, long // branch)]


def policy_shape(policy: Policy) -> ModelShape:
    """The shape of a policy's base and adapter."""
    causal_lm = policy.causal_lm
    return cost_model.shape_of(
        causal_lm.config,
        dtype_bytes=causal_lm.get_input_embeddings().weight.dtype.itemsize,
        rank=policy.adapter.lora_rank,
        trained=sum(parameter.numel() for parameter in policy.parameters.values()),
    )


def kept_bytes(policy: Policy, row: Row, *, by_entropy: bool = False) -> int:
    """Bytes of the distinct tensors that autograd keeps of a row's forward, without weights.

    ``by_entropy``: of one whose entropies are differentiable too.
    """
    parts = [policy.sharding.own(parameter) for parameter in policy.causal_lm.parameters()]
    constant = [*parts, *policy.causal_lm.buffers()]
    weights = {tensor.untyped_storage().data_ptr() for tensor in constant}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.evaluate(row, by_entropy=by_entropy)
    return sum(
        tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in weights
    )
