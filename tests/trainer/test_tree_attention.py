"""Attention over a tree: both layouts against one dense mask, at any shape of tree."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trainer.test_packing import DATUMS
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.packing import Row, pack
from espalier.trainer.policy.tree_attention import BucketLayout, VarlenLayout, segments

CPU = torch.device("cpu")
TREES = st.lists(DATUMS, min_size=1, max_size=8)
WINDOWS = [None, 1, 3, 100]


def drawn(row: Row) -> list[Tensor]:
    """Queries of 4 heads, keys and values of 2, for every token of the row."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(4, len(row.tokens), 8), (2, len(row.tokens), 8), (2, len(row.tokens), 8)]
    return [torch.randn(s, generator=generator).double().requires_grad_() for s in sizes]


def dense(row: Row, window: int | None) -> tuple[Tensor, list[Tensor]]:
    """Output and input gradients with the mask of the whole row."""
    query, key, value = inputs = drawn(row)
    mask = torch.from_numpy(row.visible())
    if window is not None:
        depths = torch.from_numpy(row.depths)
        mask &= depths[None, :] > depths[:, None] - window
    mixed = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True
    ).transpose(0, 1)
    return mixed.detach(), _gradients(mixed, inputs)


def _gradients(mixed: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(mixed.shape, generator=generator).double()
    return list(torch.autograd.grad(mixed, inputs, upstream))


@pytest.mark.parametrize("window", WINDOWS)
@settings(max_examples=40, deadline=None)
@given(data=TREES)
def test_buckets_equal_a_dense_mask_forward_and_backward(
    window: int | None, data: list[Datum]
) -> None:
    (row,) = pack(data, 1000)
    query, key, value = inputs = drawn(row)
    mixed = BucketLayout(row, CPU).attend(query, key, value, 0.3, window)
    expected, gradients = dense(row, window)
    torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=1e-12)
    for ours, plain in zip(_gradients(mixed, inputs), gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", WINDOWS)
@settings(max_examples=20, deadline=None)
@given(data=TREES)
def test_the_varlen_indices_equal_a_dense_mask(window: int | None, data: list[Datum]) -> None:
    """What the CUDA kernel is given, through plain attention segment by segment."""
    (row,) = pack(data, 1000)
    layout = VarlenLayout.of(row, CPU)
    query, key, value = drawn(row)
    bounds = list(zip(layout.query_bounds.tolist(), layout.key_bounds.tolist(), strict=True))
    parts = []
    for (q, k), (q_end, k_end) in itertools.pairwise(bounds):
        chosen = layout.keys[k:k_end]
        ends = torch.arange(k_end - k - (q_end - q), k_end - k)[:, None]
        places = torch.arange(k_end - k)[None]
        mask = (places <= ends) & (places > ends - (window or 1000))
        parts.append(
            scaled_dot_product_attention(
                query[:, q:q_end], key[:, chosen], value[:, chosen],
                attn_mask=mask, scale=0.3, enable_gqa=True,
            )
        )  # fmt: skip
        assert q_end - q <= layout.longest_query
        assert k_end - k <= layout.longest_key
    expected, _ = dense(row, window)
    mixed = torch.cat(parts, dim=1).transpose(0, 1)
    torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=1e-12)


def test_a_shared_prompt_is_one_segment_and_its_outputs_one_bucket() -> None:
    prompt = tuple(range(10, 20))
    data = [Datum(prompt, (t, 5, 6, 7), (), 0.0, 0.0, 0, None) for t in (1, 2, 3)]
    (row,) = pack(data, 100)
    # The first output goes on from the prompt without a cut.
    assert [(s.above, s.stop - s.start) for s in segments(row.parents)] == [
        (0, 13),
        (10, 3),
        (10, 3),
    ]
    assert [len(b.queries) for b in BucketLayout(row, CPU).buckets] == [1, 2]
