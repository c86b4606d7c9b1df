"""What a row takes on the padded path, of which nothing is known but what short rows keep."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.trainer.test_cost_model import datum
from tests.trainer.test_families import PADDED, made

from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.packing import pack
from espalier.trainer.compute import measure
from espalier.trainer.memory.row_costs import Kept, PaddedSize, fit, padded_size

SIZES = (PaddedSize(1, 32, 1), PaddedSize(1, 64, 1), PaddedSize(1, 64, 64))


def test_a_padded_row_is_measured_by_whole_sequences_of_the_longest_length() -> None:
    batch = [datum(4, 3, 1), datum(4, 9, 2)]
    (row,) = pack(batch, 64)
    # The last token predicts nothing.
    assert padded_size(row) == PaddedSize(sequences=2, longest=12, targets=12)
    assert (padded_size(row).tokens, padded_size(row).pairs) == (24, 288)


@given(st.floats(0, 1e6), st.floats(0, 1e4), st.floats(0, 1e6))
def test_three_rows_tell_what_tokens_pairs_and_targets_keep(
    token: float, pair: float, target: float
) -> None:
    true = Kept(token, pair, target)
    found = fit([(size, round(true.of(size))) for size in SIZES])
    size = PaddedSize(4, 512, 1000)
    assert found.of(size) == pytest.approx(true.of(size), rel=0.01, abs=size.pairs)


def test_what_does_not_grow_is_taken_for_tokens_and_never_for_a_negative_pair() -> None:
    found = fit([(size, 1000 * size.tokens + 5000) for size in SIZES])
    assert found.pair == 0.0
    assert found.of(PaddedSize(1, 64, 1)) >= 69_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "changes", "named"), PADDED)
def test_what_autograd_keeps_of_a_padded_group_follows_from_the_rows_measured_at_start(
    family: str, changes: dict[str, object], named: str, dtype: torch.dtype
) -> None:
    policy = made(family, changes, dtype)
    costs = measure.padded_costs(policy)
    outputs = [tuple(range(start, start + 80)) for start in (0, 10, 20)] + [tuple(range(15))]
    batch = [Datum(tuple(range(40)), output, (), 0.0, 0.0, 0, None) for output in outputs]
    (row,) = pack(batch, 4096)
    measured = measure.kept_bytes(policy, row)
    assert measured <= 1.05 * costs.saved(row, checkpointing=False) <= 1.25 * measured
