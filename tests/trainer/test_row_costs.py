"""What autograd keeps of a row, extrapolated from the short rows that are measured at start."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.trainer.families import FAMILIES, family_policy
from tests.trainer.test_cost_model import datum
from tests.trainer.test_families import PADDED, made

from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.packing import pack
from espalier.trainer.compute import measure
from espalier.trainer.memory.cost_model import RowSize
from espalier.trainer.memory.row_costs import Kept, fit

# A short chain, a long one, one with more targets, and a long prompt with short branches.
SIZES = (
    RowSize(tokens=32, targets=1, pairs=528, gathered=0),
    RowSize(tokens=64, targets=1, pairs=2080, gathered=0),
    RowSize(tokens=64, targets=64, pairs=2080, gathered=0),
    RowSize(tokens=112, targets=64, pairs=5264, gathered=1072),
)
LARGE = RowSize(tokens=4000, targets=3000, pairs=4_000_000, gathered=6000)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e4), st.floats(0, 1e5))
def test_four_rows_determine_what_tokens_targets_pairs_and_keys_keep(
    token: float, target: float, pair: float, gathered: float
) -> None:
    true = Kept(token, target, pair, gathered)
    found = fit([(size, round(true.of(size))) for size in SIZES])
    assert found.of(LARGE) == pytest.approx(true.of(LARGE), rel=0.01, abs=LARGE.pairs)


@given(st.integers(1, 1000), st.integers(0, 100_000))
def test_overhead_that_does_not_grow_never_makes_a_row_look_smaller(
    token: int, overhead: int
) -> None:
    measured = [(size, token * size.tokens + overhead) for size in SIZES]
    found = fit(measured)
    assert min(found.token, found.target, found.pair, found.gathered) >= 0.0
    assert all(found.of(size) >= 0.999 * kept for size, kept in measured)
    assert found.of(LARGE) >= 0.999 * token * LARGE.tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_what_autograd_keeps_of_a_packed_row_follows_from_the_measured_rows(
    family: str, dtype: torch.dtype
) -> None:
    policy = family_policy(family, dtype)
    assert policy.warning is None
    costs = measure.row_costs(policy)
    for prompt, output, count in ((60, 100, 1), (60, 50, 4), (256, 8, 32)):
        batch = [datum(prompt, output, seed) for seed in range(1, count + 1)]
        (row,) = pack(batch, 4096)
        measured = measure.kept_bytes(policy, row)
        assert costs.saved(row, checkpointing=False) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_entropy_bonus_keeps_one_more_row_for_every_target(dtype: torch.dtype) -> None:
    policy = family_policy("llama", dtype)
    costs = measure.row_costs(policy)
    (row,) = pack([datum(60, 50, seed) for seed in range(1, 5)], 4096)
    measured = measure.kept_bytes(policy, row, by_entropy=True)
    assert costs.with_entropy().saved(row, checkpointing=False) == pytest.approx(measured, rel=0.1)
    hidden = costs.shape.hidden * costs.shape.dtype_bytes
    assert measured - measure.kept_bytes(policy, row) == 200 * hidden


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "changes", "named"), PADDED)
def test_what_autograd_keeps_of_a_padded_group_follows_from_the_measured_rows(
    family: str, changes: dict[str, object], named: str, dtype: torch.dtype
) -> None:
    policy = made(family, changes, dtype)
    costs = measure.row_costs(policy)
    outputs = [tuple(range(start, start + 80)) for start in (0, 10, 20)] + [tuple(range(15))]
    batch = [Datum(tuple(range(40)), output, (), 0.0, 0.0, 0, None) for output in outputs]
    (row,) = pack(batch, 4096)
    measured = measure.kept_bytes(policy, row)
    assert measured <= 1.05 * costs.saved(row, checkpointing=False) <= 1.25 * measured
