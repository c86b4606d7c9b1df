"""The sizes of rows and the FLOPs of a step, for the shapes that users train."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.packing import pack
from espalier.trainer.memory import cost_model
from espalier.trainer.memory.cost_model import ModelShape, RowSize

QWEN3_4B = ModelShape(
    hidden=2560,
    layers=36,
    heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate=9728,
    vocabulary=151936,
    dtype_bytes=2,
    rank=32,
    trained=66_060_288,
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


def test_qwen3_4b_has_its_four_billion_parameters() -> None:
    # The head is tied to the embedding.
    embedding = QWEN3_4B.vocabulary * QWEN3_4B.hidden
    assert 4.0e9 < QWEN3_4B.trunk_parameters + embedding < 4.1e9


def test_lora_costs_four_and_full_fine_tuning_six_flops_per_parameter_and_token() -> None:
    size = replace(CHAIN, pairs=0, targets=0)
    base = QWEN3_4B.trunk_parameters * size.tokens
    lora = cost_model.step_flops(replace(QWEN3_4B, trained=0), size)
    assert lora == 4.0 * base
    assert cost_model.step_flops(replace(QWEN3_4B, rank=0), size) == 6.0 * base


def test_a_row_is_measured_by_unique_tokens_and_visible_pairs() -> None:
    batch = [datum(4, 3, 1), datum(4, 3, 2)]
    (row,) = pack(batch, 64)
    size = cost_model.row_size(row)
    # 4 shared tokens, and 2 of each output (the last token predicts nothing).
    assert (size.tokens, size.targets) == (8, 6)
    assert size.pairs == int(row.visible().sum())
    assert size.gathered == 12


def test_a_padded_row_is_measured_by_whole_sequences_of_the_longest_length() -> None:
    (row,) = pack([datum(4, 3, 1), datum(4, 9, 2)], 64)
    # The last token predicts nothing, so the longest sequence has 12 tokens.
    assert cost_model.padded_size(row) == RowSize(tokens=24, targets=12, pairs=288, gathered=0)


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
