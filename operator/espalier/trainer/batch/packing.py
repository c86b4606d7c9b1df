"""Rows without padding: datums laid out as a tree of tokens, so that shared prefixes cost once.

A row is one sequence of unique tokens. Every token knows its parent (the token before it in its
datum) and its depth (its position). A token may attend to its ancestors and itself, which makes
each path through the tree exactly the sequence that it came from. Source: shared-prefix packing
as in TRL's AsyncGRPO; hidden positions and targets are kept apart, so that the last prompt token
predicts the first output token of each of its datums.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espalier.trainer.batch.data import Datum

NO_PARENT = -1
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """The positions of a datum's targets among its row's targets: ``start`` to ``stop``."""

    datum: int
    start: int
    stop: int


@dataclass(frozen=True)
class Row:
    """T unique tokens and N targets: target i is read from the hidden state at ``reads[i]``.

    All of its datums have the same ``temperature``.
    """

    tokens: _Ints
    depths: _Ints
    parents: _Ints
    reads: _Ints
    targets: _Ints
    spans: tuple[Span, ...]
    temperature: float = 1.0

    @property
    def is_chain(self) -> bool:
        """Whether the row is one sequence, for which plain causal attention is right."""
        return bool(np.array_equal(self.depths, np.arange(len(self.depths))))

    def visible(self) -> NDArray[np.bool_]:
        """[T, T]: token i may attend to token j, that is j is i or an ancestor of i."""
        size = len(self.tokens)
        mask = np.zeros((size, size), dtype=np.bool_)
        for index, parent in enumerate(self.parents):
            if parent != NO_PARENT:
                mask[index] = mask[parent]
            mask[index, index] = True
        return mask


@dataclass(frozen=True)
class Rows:
    """A batch as rows; spans index ``data``. ``no_grad`` rows need a forward pass only."""

    data: tuple[Datum, ...]
    with_grad: tuple[Row, ...]
    no_grad: tuple[Row, ...] = ()


def lay_out(data: Sequence[Datum], budget: int, no_grad: Collection[int] = ()) -> Rows:
    """All datums in rows of at most ``budget`` unique tokens; the indices ``no_grad`` apart."""
    return Rows(
        tuple(data),
        tuple(pack(data, budget, [i for i in range(len(data)) if i not in no_grad])),
        tuple(pack(data, budget, sorted(no_grad))),
    )


def pack(data: Sequence[Datum], budget: int, members: Sequence[int] | None = None) -> list[Row]:
    """Rows of at most ``budget`` unique tokens (one datum may exceed it alone); deterministic.

    Packs the datums of the indices ``members``, or all. Neighbours in token order share the longest
    prefixes, so a greedy fill in that order keeps groups together. A row has one temperature.
    """
    chosen = range(len(data)) if members is None else members
    rows: list[Row] = []
    for temperature in sorted({data[index].temperature for index in chosen}):
        alike = [index for index in chosen if data[index].temperature == temperature]
        rows += _filled(data, budget, alike, temperature)
    return rows


def _filled(
    data: Sequence[Datum], budget: int, members: Sequence[int], temperature: float
) -> list[Row]:
    order = sorted(members, key=lambda index: data[index].prompt + data[index].output)
    rows, tree = [], _Tree(temperature)
    for index in order:
        # The last token predicts nothing, so it needs no hidden state.
        path = (data[index].prompt + data[index].output)[:-1]
        if tree.size and tree.size + tree.new_tokens(path) > budget:
            rows.append(tree.row())
            tree = _Tree(temperature)
        tree.add(index, path, data[index])
    if tree.size:
        rows.append(tree.row())
    return rows


class _Tree:
    """A row under construction."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self._children: dict[tuple[int, int], int] = {}
        self._tokens: list[int] = []
        self._depths: list[int] = []
        self._parents: list[int] = []
        self._reads: list[int] = []
        self._targets: list[int] = []
        self._spans: list[Span] = []

    @property
    def size(self) -> int:
        return len(self._tokens)

    def new_tokens(self, path: tuple[int, ...]) -> int:
        node = NO_PARENT
        for depth, token in enumerate(path):
            known = self._children.get((node, token))
            if known is None:
                return len(path) - depth
            node = known
        return 0

    def add(self, index: int, path: tuple[int, ...], datum: Datum) -> None:
        node, nodes = NO_PARENT, []
        for depth, token in enumerate(path):
            known = self._children.get((node, token))
            if known is None:
                known = len(self._tokens)
                self._children[node, token] = known
                self._tokens.append(token)
                self._depths.append(depth)
                self._parents.append(node)
            node = known
            nodes.append(node)
        start = len(self._targets)
        self._reads += nodes[len(datum.prompt) - 1 :]
        self._targets += datum.predicted
        self._spans.append(Span(index, start, len(self._targets)))

    def row(self) -> Row:
        return Row(
            tokens=np.array(self._tokens, dtype=np.int64),
            depths=np.array(self._depths, dtype=np.int64),
            parents=np.array(self._parents, dtype=np.int64),
            reads=np.array(self._reads, dtype=np.int64),
            targets=np.array(self._targets, dtype=np.int64),
            spans=tuple(self._spans),
            temperature=self._temperature,
        )
