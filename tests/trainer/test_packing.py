"""Rows: every token of every datum is scored once, and prefixes are laid out once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.packing import Row, pack

TOKENS = st.integers(0, 3)
DATUMS = st.builds(
    lambda prompt, output: Datum(tuple(prompt), tuple(output), (), 0.0, 0.0, 0, None),
    st.lists(TOKENS, min_size=1, max_size=6),
    st.lists(TOKENS, min_size=1, max_size=6),
)


def path(row: Row, node: int) -> list[int]:
    tokens: list[int] = []
    while node != -1:
        tokens.insert(0, int(row.tokens[node]))
        node = int(row.parents[node])
    return tokens


@settings(max_examples=200, deadline=None)
@given(st.lists(DATUMS, min_size=1, max_size=8), st.integers(1, 40))
def test_packing_is_lossless(data: list[Datum], budget: int) -> None:
    rows = pack(data, budget)
    spans = [(row, span) for row in rows for span in row.spans]
    assert sorted(span.datum for _, span in spans) == list(range(len(data)))
    for row, span in spans:
        datum = data[span.datum]
        for offset in range(span.stop - span.start):
            index = span.start + offset
            assert row.targets[index] == datum.output[offset]
            read = path(row, int(row.reads[index]))
            assert read == list(datum.prompt + datum.output[:offset])
            assert row.depths[row.reads[index]] == len(read) - 1
    for row in rows:
        longest = max(len(data[s.datum].prompt + data[s.datum].output) - 1 for s in row.spans)
        assert len(row.tokens) <= max(budget, longest)


@settings(max_examples=100, deadline=None)
@given(st.lists(DATUMS, min_size=1, max_size=6))
def test_a_token_sees_its_ancestors_and_itself_only(data: list[Datum]) -> None:
    (row,) = pack(data, 1000)
    visible = row.visible()
    for index in range(len(row.tokens)):
        ancestors, node = set(), index
        while node != -1:
            ancestors.add(node)
            node = int(row.parents[node])
        assert set(visible[index].nonzero()[0].tolist()) == ancestors


def test_a_shared_prompt_is_laid_out_once() -> None:
    prompt = tuple(range(10, 20))
    data = [Datum(prompt, (token, 5), (), 0.0, 0.0, 0, None) for token in (1, 2, 3)]
    (row,) = pack(data, 100)
    assert len(row.tokens) == 10 + 3
    assert len(row.targets) == 6
    assert not row.is_chain


@pytest.mark.parametrize("outputs", [(1,), (1, 2, 3)])
def test_one_datum_is_plain_causal_attention(outputs: tuple[int, ...]) -> None:
    (row,) = pack([Datum((7, 8), outputs, (), 0.0, 0.0, 0, None)], 100)
    assert row.is_chain
