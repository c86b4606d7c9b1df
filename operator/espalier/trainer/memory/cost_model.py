"""What a batch costs: floating-point operations and bytes, from the shape of the model alone.

Counts are of unique tokens (shared prefixes once) and follow trainer reference 1.4: what autograd
keeps for a LoRA step is, per layer, the inputs of its norms and linears, q, k, v and the output of
attention, and the four tensors of the gated MLP.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from espalier.trainer.batch.packing import Row

FLOAT32_BYTES = 4
# Of a trained weight at the height of a step: itself, gradient, both moments; and proposed anew.
TRAINED_BYTES = (4 + 4) * FLOAT32_BYTES
# PEFT multiplies seven linears of a layer (q, k, v, o, gate, up, down) by default.
_LINEARS = 7


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder with gated MLPs; ``rank`` is the adapter's, 0 for full fine-tuning.

    ``dtype_bytes`` is the size of a base weight, ``trained`` the number of trained parameters,
    ``qk_norm`` whether q and k are normalised, ``norms`` the number of norms in a layer.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    dtype_bytes: int
    rank: int
    trained: int
    qk_norm: bool = False
    norms: int = 2

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
        """Of a number in the type that norms, logits and log-probs are computed in."""
        return max(self.dtype_bytes, FLOAT32_BYTES)

    @property
    def head_gradient_bytes(self) -> int:
        """The gradients of a trained head and of the embedding, before they are accumulated."""
        return 0 if self.rank else 2 * self.vocabulary * self.hidden * self.wide_bytes

    @property
    def trunk_parameters(self) -> int:
        """Parameters of all layers that multiply tokens."""
        attention = 2 * self.hidden * (self.query + self.key)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def base_parameters(self) -> int:
        """Parameters of the layers, the embedding and, unless tied to it, the head."""
        return self.trunk_parameters + (1 if self.tied else 2) * self.vocabulary * self.hidden


@dataclass(frozen=True)
class HeadChunks:
    """How the head runs: so many ``elements`` of logits at once.

    ``widened`` is whether a narrow weight is copied to float32 for it, as on a CPU.
    """

    elements: int
    widened: bool = False


@dataclass(frozen=True)
class RowSize:
    """What a row's cost depends on.

    ``tokens`` unique tokens, ``targets`` log-probs read, ``pairs`` (query, key) pairs that attend,
    ``gathered`` keys copied beside the tokens so that branches see their prefix.
    """

    tokens: int
    targets: int
    pairs: int
    gathered: int


def row_size(row: Row) -> RowSize:
    """Measures a row: a token attends to its ancestors and itself, depth + 1 tokens."""
    keys = sum(int(row.depths[row.reads[span.stop - 1]]) + 1 for span in row.spans)
    return RowSize(
        tokens=len(row.tokens),
        targets=len(row.targets),
        pairs=int(row.depths.sum()) + len(row.depths),
        gathered=0 if row.is_chain else keys,
    )


def shape_of(config: Any, *, dtype_bytes: int, rank: int, trained: int) -> ModelShape:
    """The shape that a Hugging Face text configuration describes."""
    family = str(config.model_type)
    heads = int(config.num_attention_heads)
    return ModelShape(
        hidden=int(config.hidden_size),
        layers=int(config.num_hidden_layers),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        intermediate=int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size),
        vocabulary=int(config.vocab_size),
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        dtype_bytes=dtype_bytes,
        rank=rank,
        trained=trained,
        qk_norm=family.startswith(("qwen3", "gemma3")),
        norms=4 if family.startswith(("gemma2", "gemma3")) else 2,
    )


def step_flops(shape: ModelShape, size: RowSize, *, checkpointing: bool = False) -> float:
    """Forward and backward of a row; the head runs on target rows only, and never twice.

    A linear costs 2 FLOPs per parameter and token forward, 2 for the gradient of its input and,
    when it is trained, 2 for that of its weight: 4N for LoRA, 6N in full. Attention costs
    2 * 2 * width per pair forward and 2.5 times that backward (flash recomputes the scores).
    """
    forward = 2.0 * shape.trunk_parameters * size.tokens
    attention = 4.0 * shape.query * shape.layers * size.pairs
    passes = 2 if shape.rank else 3
    adapter = 6.0 * shape.trained * size.tokens if shape.rank else 0.0
    head = 2.0 * shape.vocabulary * shape.hidden * size.targets * (2 if shape.rank else 3)
    again = forward + attention if checkpointing else 0.0
    return passes * forward + 3.5 * attention + adapter + head + again


def layer_bytes(shape: ModelShape, size: RowSize) -> int:
    """What autograd keeps of one layer for a row, without checkpointing."""
    stream = size.tokens * shape.hidden
    narrow = shape.dtype_bytes
    # Norms square in float32; PEFT hands every adapter a float32 copy of a narrower input.
    copied = 0 if narrow >= FLOAT32_BYTES else FLOAT32_BYTES
    wide = shape.wide_bytes
    norms = shape.norms * stream * wide + 2 * stream * narrow
    if shape.qk_norm:
        norms += size.tokens * (shape.query + shape.key) * wide
    gathered = 2 * size.gathered * shape.key * narrow
    attention = size.tokens * 2 * (shape.query + shape.key) * narrow + gathered
    mlp = 4 * size.tokens * shape.intermediate * narrow
    adapters = size.tokens * shape.rank * _LINEARS * wide
    copies = size.tokens * (5 * shape.hidden + shape.query + shape.intermediate) * copied
    return norms + attention + mlp + adapters + (copies if shape.rank else 0)


def saved_bytes(shape: ModelShape, size: RowSize, *, checkpointing: bool = False) -> int:
    """What autograd keeps between forward and backward of a row, Jacobian rows included.

    With checkpointing a layer keeps its input only, and one layer at a time is computed again.
    """
    wide = shape.wide_bytes
    ends = size.tokens * shape.hidden * wide + size.targets * shape.hidden * shape.dtype_bytes
    if not checkpointing:
        return ends + shape.layers * layer_bytes(shape, size)
    return ends + shape.layers * size.tokens * shape.hidden * shape.dtype_bytes


def head_bytes(
    shape: ModelShape, size: RowSize, chunks: HeadChunks, *, gradients: bool = True
) -> int:
    """The head while it runs: chunks of logits in float32, and the rows that it reads."""
    rows = min(size.targets, max(1, chunks.elements // shape.vocabulary))
    wide = shape.wide_bytes
    copy = shape.vocabulary * shape.hidden * wide if chunks.widened else 0
    logits = _logit_copies(shape, gradients=gradients) * rows * shape.vocabulary * wide
    return shape.head_gradient_bytes + copy + logits + size.targets * shape.hidden * wide


def _logit_copies(shape: ModelShape, *, gradients: bool) -> int:
    """The buffer of logits, the probabilities, and over a narrow base their narrow copy.

    Jacobian rows of a wide, frozen head are formed in the buffer itself (``head``).
    """
    if shape.dtype_bytes < FLOAT32_BYTES:
        return 3
    return 1 if shape.rank and gradients else 2


def row_bytes(
    shape: ModelShape,
    size: RowSize,
    *,
    chunks: HeadChunks,
    checkpointing: bool = False,
    correction: float = 1.0,
) -> int:
    """The peak of one row's forward and backward over what is held between batches.

    The peak is what autograd keeps, plus the larger of the head's chunks and the backward of one
    layer, whose gradients are as large as what it kept. ``correction`` is measured bytes over
    predicted bytes.
    """
    layer = layer_bytes(shape, size)
    # Recomputing a layer holds it whole while its gradients come into being.
    backward = 2 * layer if checkpointing else layer
    kept = saved_bytes(shape, size, checkpointing=checkpointing)
    head = head_bytes(shape, size, chunks)
    return int(correction * kept + max(correction * backward, head))


def score_bytes(shape: ModelShape, size: RowSize, chunks: HeadChunks) -> int:
    """The peak of one row's forward without gradients: one layer and the head's chunks."""
    hidden = size.tokens * shape.hidden * shape.wide_bytes
    head = head_bytes(shape, size, chunks, gradients=False)
    return 2 * hidden + max(layer_bytes(shape, size), head)


def training_bytes(shape: ModelShape) -> int:
    """What training holds beside the base: float32 weights, gradients, both Adam moments.

    And, while a step is proposed, its new weights and moments and a scaled gradient.
    """
    return TRAINED_BYTES * shape.trained


def balance(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Indices of ``costs`` for every rank: the longest first, each to the least loaded rank.

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
