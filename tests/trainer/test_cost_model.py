"""The cost model against what autograd keeps, and against the shapes that users train."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.trainer.families import FAMILIES, family_policy

from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.packing import pack
from espalier.trainer.compute import measure
from espalier.trainer.memory import cost_model
from espalier.trainer.memory.cost_model import ModelShape, RowSize

GIB = 1 << 30
QWEN3_4B = ModelShape(
    hidden=2560,
    layers=36,
    heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate=9728,
    vocabulary=151936,
    tied=True,
    dtype_bytes=2,
    rank=32,
    trained=66_060_288,
    qk_norm=True,
)
CHAIN = RowSize(tokens=1024, targets=512, pairs=1024 * 1025 // 2, gathered=0)


def datum(prompt: int, output: int, seed: int, prompt_seed: int = 0) -> Datum:
    start, rest = random.Random(prompt_seed), random.Random(seed)
    return Datum(
        prompt=tuple(start.randrange(512) for _ in range(prompt)),
        output=tuple(rest.randrange(512) for _ in range(output)),
        sampling_logprobs=(),
        advantage=1.0,
        reward=0.0,
        trajectory=seed,
        group=None,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_predicted_bytes_are_within_a_quarter_of_what_autograd_keeps(
    family: str, dtype: torch.dtype
) -> None:
    policy = family_policy(family, dtype)
    shape = measure.policy_shape(policy)
    for batch in ([datum(60, 100, 1)], [datum(60, 50, seed) for seed in range(1, 5)]):
        (row,) = pack(batch, 4096)
        measured = measure.kept_bytes(policy, row)
        predicted = cost_model.saved_bytes(shape, cost_model.row_size(row))
        assert 0.75 * measured < predicted < 1.25 * measured


def test_qwen3_4b_has_its_four_billion_parameters() -> None:
    assert 4.0e9 < QWEN3_4B.base_parameters < 4.1e9


def test_lora_costs_four_and_full_fine_tuning_six_flops_per_parameter_and_token() -> None:
    size = replace(CHAIN, pairs=0, targets=0)
    base = QWEN3_4B.trunk_parameters * size.tokens
    lora = cost_model.step_flops(replace(QWEN3_4B, trained=0), size)
    assert lora == 4.0 * base
    assert cost_model.step_flops(replace(QWEN3_4B, rank=0), size) == 6.0 * base


def test_checkpointing_costs_one_more_forward_of_the_trunk() -> None:
    # Reference 1.4: 17.1 to 24.7 GF a token for Qwen3-4B at 1k context, 44 % more.
    once = cost_model.step_flops(QWEN3_4B, CHAIN)
    again = cost_model.step_flops(QWEN3_4B, CHAIN, checkpointing=True)
    assert 1.38 < again / once < 1.5


def test_a_row_is_measured_by_unique_tokens_and_visible_pairs() -> None:
    batch = [datum(4, 3, 1), datum(4, 3, 2)]
    (row,) = pack(batch, 64)
    size = cost_model.row_size(row)
    # 4 shared tokens, and 2 of each output (the last token predicts nothing).
    assert (size.tokens, size.targets) == (8, 6)
    assert size.pairs == int(row.visible().sum())
    assert size.gathered == 12


def test_a_plain_sequence_gathers_no_keys() -> None:
    (row,) = pack([datum(4, 3, 1)], 64)
    assert cost_model.row_size(row).gathered == 0


@given(
    costs=st.lists(st.floats(0.0, 1e6), max_size=40),
    ranks=st.integers(1, 8),
)
def test_balance_gives_every_item_to_one_rank_within_the_bound_of_lpt(
    costs: list[float], ranks: int
) -> None:
    parts = cost_model.balance(costs, ranks)
    assert len(parts) == ranks
    assert sorted(index for part in parts for index in part) == list(range(len(costs)))
    # Greedy lists: the largest load is at most the mean plus the largest item.
    worst = max(sum(costs[index] for index in part) for part in parts)
    assert worst <= sum(costs) / ranks + max(costs, default=0.0) + 1e-6


def test_balance_is_deterministic_for_equal_costs() -> None:
    assert cost_model.balance([1.0, 1.0, 1.0, 1.0], 2) == [[0, 2], [1, 3]]
