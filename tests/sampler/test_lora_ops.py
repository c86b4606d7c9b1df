"""The mended LoRA operations against a float64 oracle, and the guard on what they replace."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

from espalier.sampler.cpu import lora_ops as cpu_lora

SLOTS, WIDE, RANK = 3, 24, 4


def oracle(inputs: torch.Tensor, weights: torch.Tensor, indices: list[int]) -> torch.Tensor:
    """Row by row in float64; a row without an adapter is zero."""
    rows = [
        weights[slot].reshape(weights.shape[-2:]).double() @ row.double()
        if slot >= 0
        else torch.zeros(weights.shape[-2], dtype=torch.float64)
        for row, slot in zip(inputs, indices, strict=True)
    ]
    return torch.stack(rows)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 2e-2 if found.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


batches = st.lists(st.tuples(st.integers(-1, SLOTS - 1), st.integers(1, 4)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    batch=batches,
    scaling=st.sampled_from([1.0, 0.5]),
    add=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    four_dimensional=st.booleans(),
)
def test_every_row_gets_its_own_adapter_and_none_gets_nothing(
    batch: list[tuple[int, int]],
    scaling: float,
    add: bool,
    dtype: torch.dtype,
    four_dimensional: bool,
) -> None:
    torch.manual_seed(0)
    indices = [slot for slot, length in batch for _ in range(length)]
    runs = torch.tensor([slot for slot, _ in batch])
    lengths = torch.tensor([length for _, length in batch])
    metadata = (torch.cumsum(lengths, 0) - lengths, lengths, runs, len(batch), 4, len(indices))
    tokens = len(indices)
    down = torch.randn(SLOTS, 1, RANK, WIDE, dtype=dtype)
    up = torch.randn(SLOTS, 1, WIDE, RANK, dtype=dtype)
    if not four_dimensional:
        down, up = down.squeeze(1), up.squeeze(1)
    inputs = torch.randn(tokens, WIDE, dtype=dtype)

    shrunk = torch.full((tokens, RANK), 9.0, dtype=torch.float32)
    cpu_lora.sgmv_shrink(inputs, down, shrunk, *metadata, scaling)
    close(shrunk, scaling * oracle(inputs, down, indices))
    again = torch.full_like(shrunk, 9.0)
    cpu_lora.bgmv_shrink(inputs, down, again, torch.tensor(indices), scaling)
    assert torch.equal(again, shrunk)

    before = torch.randn(tokens, WIDE + 8, dtype=dtype)
    update = oracle(shrunk.to(dtype), up, indices)
    expected = before.double()
    expected[:, :WIDE] = update + (expected[:, :WIDE] if add else 0)
    expanded = before.clone()
    cpu_lora.sgmv_expand(shrunk, up, expanded, *metadata, add)
    close(expanded, expected)

    sliced = before.double()
    sliced[:, 8:] = update + (sliced[:, 8:] if add else 0)
    expanded = before.clone()
    cpu_lora.sgmv_expand_slice(shrunk, up, expanded, *metadata, 8, WIDE, add)
    close(expanded, sliced)


def test_the_original_gives_a_row_without_adapter_the_last_adapters_weights() -> None:
    """The fault that the replacement mends; when this fails, vLLM has mended it."""
    weights = torch.randn(SLOTS, 1, RANK, WIDE)
    inputs = torch.randn(1, WIDE)
    assert lora_ops.bgmv_shrink.__module__ == lora_ops.__name__
    found = torch.zeros(1, RANK)
    lora_ops.bgmv_shrink(inputs, weights, found, torch.tensor([-1]))
    close(found, oracle(inputs, weights, [SLOTS - 1]))


def test_rows_and_indices_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="rows must be equal"):
        cpu_lora.bgmv_shrink(
            torch.zeros(2, WIDE),
            torch.zeros(SLOTS, 1, RANK, WIDE),
            torch.zeros(2, RANK),
            torch.tensor([0]),
        )


def test_the_pinned_vllm_is_the_one_that_we_know() -> None:
    cpu_lora.check_source(lora_ops)
    cpu_lora.check_source(punica_cpu)


def test_changed_vllm_code_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    before = lora_ops.bgmv_shrink
    monkeypatch.setitem(cpu_lora.KNOWN_SOURCES, lora_ops.__name__, "0" * 64)
    with pytest.raises(cpu_lora.UnknownSourceError, match="lora_ops has changed"):
        cpu_lora.install()
    assert lora_ops.bgmv_shrink is before


def test_installing_reaches_the_names_that_vllm_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora.ops import torch_ops

    for module in (lora_ops, torch_ops, punica_cpu):
        for operation in cpu_lora.OPERATIONS:
            monkeypatch.setattr(module, operation.__name__, getattr(module, operation.__name__))
    cpu_lora.install()
    cpu_lora.install()
    assert punica_cpu.sgmv_expand_slice is cpu_lora.sgmv_expand_slice
    assert torch_ops.bgmv_expand is cpu_lora.bgmv_expand
