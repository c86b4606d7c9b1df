"""How datums are shared among ranks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from espalier.trainer.batch.data import Datum
from espalier.trainer.memory.cost_model import ModelShape, RowSize, step_flops
from espalier.trainer.ranks.shares import plan, work

SHAPE = ModelShape(
    hidden=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate=128,
    vocabulary=256,
    dtype_bytes=4,
    rank=4,
    trained=5_000,
)


def datum(prompt: int, output: int, trajectory: int, group: int | None = None) -> Datum:
    start = (group if group is not None else trajectory) * 1000
    tokens = tuple(range(start, start + prompt))
    return Datum(tokens, tuple(range(output)), (), 1.0, 0.0, trajectory, group)


DATA = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60), st.booleans()), max_size=24).map(
    lambda sizes: [
        datum(prompt, output, index // 2, index // 4 if grouped else None)
        for index, (prompt, output, grouped) in enumerate(sizes)
    ]
)


@given(DATA, st.integers(1, 5))
def test_every_datum_goes_to_exactly_one_rank_and_a_trajectory_is_never_split(
    data: list[Datum], ranks: int
) -> None:
    shares = plan(data, ranks, SHAPE)
    assert len(shares) == ranks
    assert sorted(index for share in shares for index in share) == list(range(len(data)))
    for kind in (None, "grouped"):
        homes: dict[int, set[int]] = {}
        for rank, share in enumerate(shares):
            for index in share:
                if (data[index].group is None) == (kind is None):
                    homes.setdefault(data[index].trajectory, set()).add(rank)
        assert all(len(ranks_of) == 1 for ranks_of in homes.values())


def test_groups_stay_together_and_the_work_is_balanced() -> None:
    data = [datum(30, 10, 4 * group + i, group) for group in range(6) for i in range(4)]
    shares = plan(data, 2, SHAPE)
    groups = [{data[index].group for index in share} for share in shares]
    assert groups[0].isdisjoint(groups[1])
    loads = [work([data[index] for index in share], SHAPE) for share in shares]
    assert loads[0] == loads[1]


def test_a_group_that_exceeds_a_fair_share_is_spread_by_trajectory() -> None:
    data = [datum(10, 40, index, 0) for index in range(8)]
    assert [len(share) for share in plan(data, 4, SHAPE)] == [2, 2, 2, 2]


def test_a_shared_prefix_counts_once_and_long_contexts_cost_more_than_their_tokens() -> None:
    one, twin = datum(50, 11, 0, 0), datum(50, 11, 1, 0)
    # Only the output head runs again.
    head = step_flops(SHAPE, RowSize(0, 11, 0, 0))
    assert work([one, twin], SHAPE) == work([one], SHAPE) + head
    # Tokens, targets, and the (query, key) pairs of one sequence.
    assert work([datum(100, 101, 0)], SHAPE) == step_flops(
        SHAPE, RowSize(200, 101, 200 * 201 // 2, 0)
    )
