"""The shape of a model and the size of a row, and the floating-point operations they cost.

Tokens are unique: a shared prefix counts once. The bytes of a row are measured (``row_costs``).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from espalier.trainer.batch.packing import Row

FLOAT32_BYTES = 4
# Per trained parameter at the peak of a step: the weight, its gradient, both Adam moments, and
# the proposed copy of all four.
TRAINED_BYTES = (4 + 4) * FLOAT32_BYTES


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder with gated MLPs; ``rank`` is the adapter's, 0 for full fine-tuning.

    ``dtype_bytes`` is the size of a base weight, ``trained`` the number of trained parameters.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    dtype_bytes: int
    rank: int
    trained: int

    @property
    def query(self) -> int:
        """Width of q and of the output of attention."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of k, and of v."""
        return self.kv_heads * self.head_dim

    @property
    def wide_bytes(self) -> int:
        """Bytes of one element of norms, logits and log-probs: float32 or wider."""
        return max(self.dtype_bytes, FLOAT32_BYTES)

    @property
    def trunk_parameters(self) -> int:
        """Parameters of all layers that multiply tokens."""
        attention = 2 * self.hidden * (self.query + self.key)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)


@dataclass(frozen=True)
class RowSize:
    """The counts that determine the cost of a row.

    ``tokens`` are computed, ``targets`` are log-probs read, ``pairs`` are the (query, key) pairs
    of attention, ``gathered`` are the keys that are copied for branches to see their prefix.
    """

    tokens: int
    targets: int
    pairs: int
    gathered: int


def row_size(row: Row) -> RowSize:
    """The size of a row on the fast path; a token at depth d attends to d + 1 tokens."""
    keys = sum(int(row.depths[row.reads[span.stop - 1]]) + 1 for span in row.spans)
    return RowSize(
        tokens=len(row.tokens),
        targets=len(row.targets),
        pairs=int(row.depths.sum()) + len(row.depths),
        gathered=0 if row.is_chain else keys,
    )


def padded_size(row: Row) -> RowSize:
    """The size of a row on the padded path, which computes each sequence whole.

    A sequence ends at the token that predicts its last target, and is padded to the longest.
    Eager attention computes all pairs and masks them afterwards.
    """
    longest = max(int(row.depths[row.reads[span.stop - 1]]) + 1 for span in row.spans)
    tokens = len(row.spans) * longest
    return RowSize(tokens, len(row.targets), pairs=tokens * longest, gathered=0)


def shape_of(config: Any, *, dtype_bytes: int, rank: int, trained: int) -> ModelShape:
    """The shape that a Hugging Face text configuration describes."""
    heads = int(config.num_attention_heads)
    return ModelShape(
        hidden=int(config.hidden_size),
        layers=int(config.num_hidden_layers),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        intermediate=int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size),
        vocabulary=int(config.vocab_size),
        dtype_bytes=dtype_bytes,
        rank=rank,
        trained=trained,
    )


def step_flops(shape: ModelShape, size: RowSize) -> float:
    """FLOPs of a row's forward and backward; the head runs once, on target rows only.

    A linear costs 2 FLOPs per parameter and token forward, 2 for the gradient of its input and,
    when it is trained, 2 for that of its weight: 4N for LoRA, 6N in full. Attention costs
    2 * 2 * width per pair forward and 2.5 times that backward (flash recomputes the scores).
    """
    forward = 2.0 * shape.trunk_parameters * size.tokens
    attention = 4.0 * shape.query * shape.layers * size.pairs
    passes = 2 if shape.rank else 3
    adapter = 6.0 * shape.trained * size.tokens if shape.rank else 0.0
    head = 2.0 * shape.vocabulary * shape.hidden * size.targets * (2 if shape.rank else 3)
    return passes * forward + 3.5 * attention + adapter + head


def balance(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Assigns each index of ``costs`` to a rank: longest first, to the least loaded rank.

    Graham's LPT rule (1969): the largest load is within 4/3 of the best. Deterministic; a rank's
    indices ascend. Ranks without work get an empty list.
    """
    loads = [(0.0, rank) for rank in range(ranks)]
    result: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, rank = heapq.heappop(loads)
        result[rank].append(index)
        heapq.heappush(loads, (load + costs[index], rank))
    return [sorted(indices) for indices in result]
