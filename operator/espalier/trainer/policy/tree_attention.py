"""Attention over a row's tree of tokens, registered with transformers under one name.

A row consists of segments: runs of tokens in which each is the child of the one before. A segment
attends to the path above it and to itself, causally; on that path a token's place is its depth, so
the rule is "key depth <= query depth" at every level of the tree. No mask of the whole row exists.

On the CPU segments of like lengths are computed together by ``scaled_dot_product_attention``; on
CUDA all of them by one ``varlen_attn`` with gathered keys and values (torch.nn.attention.varlen).
Shared prefixes: TRL AsyncGRPO, packing.py. A name that AttentionMaskInterface does not know gets no
mask and every extra keyword of the model's call, which is how the layout arrives.
"""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from espalier.trainer.batch.packing import NO_PARENT, Row

TREE_ATTENTION = "espalier_tree"
# Segments share a bucket while the shortest has at least this part of the longest's length.
BUCKET_RATIO = 0.75
# Torch 2.11 accepts fewer heads of keys than of queries without a flag.
_GROUPED: dict[str, Any] = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
)
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """Tokens ``start`` to ``stop`` of a row; ``path`` are the row's indices from root to the last.

    The last ``stop - start`` entries of the path are the segment itself.
    """

    start: int
    stop: int
    path: _Ints

    @property
    def above(self) -> int:
        """The number of the first token's ancestors."""
        return len(self.path) - (self.stop - self.start)


def segments(parents: _Ints) -> list[Segment]:
    """The runs of a row whose tokens' parents are given, in the row's order."""
    indices = np.arange(len(parents))
    firsts = np.flatnonzero(parents != indices - 1)
    # The root's parent is NO_PARENT, which is also the index before the first.
    starts = np.union1d(firsts, [0])
    stops = np.append(starts[1:], len(parents))
    parts: list[Segment] = []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        above = _path_to(int(parents[start]), parts)
        parts.append(Segment(start, stop, np.concatenate([above, indices[start:stop]])))
    return parts


def _path_to(node: int, parts: Sequence[Segment]) -> _Ints:
    if node == NO_PARENT:
        return np.empty(0, dtype=np.int64)
    owner = parts[bisect_right(parts, node, key=lambda segment: segment.start) - 1]
    return owner.path[: owner.above + node - owner.start + 1]


@dataclass(frozen=True)
class Bucket:
    """B segments padded to Q queries and K keys, as indices into the row.

    ``depths`` [B, Q] are the queries' places on their paths; a padded query repeats the last
    real one, so that no query is without a key. ``causal``: all start at a root.
    """

    queries: Tensor
    keys: Tensor
    depths: Tensor
    causal: bool

    def visible(self, window: int | None) -> Tensor:
        """[B, 1, Q, K]: whether the key is at or above the query, less than ``window`` away."""
        places = torch.arange(self.keys.shape[1], device=self.depths.device)
        mask = places <= self.depths[:, None, :, None]
        if window is not None:
            mask &= places > self.depths[:, None, :, None] - window
        return mask


class BucketLayout:
    """A row for ``scaled_dot_product_attention``; masks are made once per row and window."""

    def __init__(self, row: Row, device: torch.device) -> None:
        parts = segments(row.parents)
        groups = _alike(parts)
        self.buckets = [_bucket([parts[i] for i in group], device) for group in groups]
        # The place of each token of the row among the buckets' concatenated padded queries.
        self._places = torch.from_numpy(_places(parts, groups)).to(device)
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """[T, Hq, D] from ``query`` [Hq, T, D], ``key`` and ``value`` [Hkv, T, D]."""
        parts = []
        for number, bucket in enumerate(self.buckets):
            mask = self._mask(number, window)
            mixed = nn.functional.scaled_dot_product_attention(
                _take(query, bucket.queries),
                _take(key, bucket.keys),
                _take(value, bucket.keys),
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=query.shape[0] != key.shape[0],
            )
            parts.append(mixed.transpose(1, 2).flatten(0, 1))
        return torch.cat(parts).index_select(0, self._places)

    def _mask(self, number: int, window: int | None) -> Tensor | None:
        bucket = self.buckets[number]
        if window is not None and window >= bucket.keys.shape[1]:
            window = None
        if window is None and bucket.causal:
            return None
        if (number, window) not in self._masks:
            self._masks[number, window] = bucket.visible(window)
        return self._masks[number, window]


@dataclass(frozen=True)
class VarlenLayout:
    """A row for ``varlen_attn``: queries in row order, keys and values gathered by ``keys``."""

    keys: Tensor
    query_bounds: Tensor
    key_bounds: Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, row: Row, device: torch.device) -> VarlenLayout:
        """Segments lie one after another in the row, so its queries need no gathering."""
        parts = segments(row.parents)
        queries = [s.stop - s.start for s in parts]
        keys = [len(s.path) for s in parts]
        return cls(
            keys=torch.from_numpy(np.concatenate([s.path for s in parts])).to(device),
            query_bounds=_bounds(queries).to(device),
            key_bounds=_bounds(keys).to(device),
            longest_query=max(queries),
            longest_key=max(keys),
        )

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """[T, Hq, D] from ``query`` [Hq, T, D], ``key`` and ``value`` [Hkv, T, D]."""
        mixed = varlen_attn(
            query.transpose(0, 1).contiguous(),
            key.transpose(0, 1).index_select(0, self.keys),
            value.transpose(0, 1).index_select(0, self.keys),
            self.query_bounds,
            self.key_bounds,
            self.longest_query,
            self.longest_key,
            scale=scaling,
            # Bottom-right aligned, as the queries end where their keys end.
            window_size=(-1 if window is None else window - 1, 0),
            **(_GROUPED if query.shape[0] != key.shape[0] else {}),
        )
        assert isinstance(mixed, Tensor)
        return mixed


Layout = BucketLayout | VarlenLayout


def layout(row: Row, device: torch.device, dtype: torch.dtype) -> Layout:
    """Varlen if its kernels exist: on CUDA in half precision."""
    if device.type == "cuda" and dtype in {torch.bfloat16, torch.float16}:
        return VarlenLayout.of(row, device)
    return BucketLayout(row, device)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The signature of transformers: [1, H, T, D] in, [1, T, H, D] out."""
    if layout is None:
        # A call without a row: one sequence, or several padded at their ends.
        mixed, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
        return mixed, None
    mixed = layout.attend(query[0], key[0], value[0], scaling, sliding_window)
    return mixed[None], None


AttentionInterface.register(TREE_ATTENTION, _attend)


def _alike(parts: Sequence[Segment]) -> list[list[int]]:
    """Groups of segments, by index, that waste little when padded to their longest."""
    order = sorted(
        range(len(parts)),
        key=lambda i: (parts[i].above > 0, -(parts[i].stop - parts[i].start), -len(parts[i].path)),
    )
    groups: list[list[int]] = []
    for index in order:
        segment = parts[index]
        first = parts[groups[-1][0]] if groups else segment
        keys = sorted((len(segment.path), len(first.path)))
        fits = (
            bool(groups)
            and (segment.above > 0) == (first.above > 0)
            and segment.stop - segment.start >= BUCKET_RATIO * (first.stop - first.start)
            and keys[0] >= BUCKET_RATIO * keys[1]
        )
        if fits:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _bucket(members: Sequence[Segment], device: torch.device) -> Bucket:
    longest_query = max(s.stop - s.start for s in members)
    longest_key = max(len(s.path) for s in members)
    queries = np.zeros((len(members), longest_query), dtype=np.int64)
    keys = np.zeros((len(members), longest_key), dtype=np.int64)
    depths = np.zeros_like(queries)
    for place, segment in enumerate(members):
        offsets = np.minimum(np.arange(longest_query), segment.stop - segment.start - 1)
        queries[place] = segment.start + offsets
        depths[place] = segment.above + offsets
        keys[place, : len(segment.path)] = segment.path
    return Bucket(
        torch.from_numpy(queries).to(device),
        torch.from_numpy(keys).to(device),
        torch.from_numpy(depths).to(device),
        causal=all(s.above == 0 for s in members),
    )


def _places(parts: Sequence[Segment], groups: Sequence[Sequence[int]]) -> _Ints:
    places = np.empty(parts[-1].stop, dtype=np.int64)
    before = 0
    for group in groups:
        longest = max(parts[index].stop - parts[index].start for index in group)
        for index in group:
            segment = parts[index]
            places[segment.start : segment.stop] = before + np.arange(segment.stop - segment.start)
            before += longest
    return places


def _bounds(lengths: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _take(values: Tensor, indices: Tensor) -> Tensor:
    """[B, H, L, D] from ``values`` [H, T, D] by ``indices`` [B, L]."""
    taken = values.index_select(1, indices.flatten())
    return taken.view(len(values), *indices.shape, -1).transpose(0, 1)
