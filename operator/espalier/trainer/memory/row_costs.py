"""What a row takes in memory, on the fast path and on the padded one. Pure.

The fast path is predicted from the model's shape and corrected by one row that was measured
(``plan``). The padded path runs whatever a family's own code is, so what autograd keeps there is
measured in short rows, and grows as their padded tokens, the pairs of them, and their targets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from espalier.trainer.batch.packing import Row
from espalier.trainer.memory import cost_model
from espalier.trainer.memory.cost_model import HeadChunks, ModelShape


class RowCosts(ABC):
    """Bytes of the tensors that a row takes over what is held between batches."""

    shape: ModelShape

    @abstractmethod
    def saved(self, row: Row, *, checkpointing: bool) -> int:
        """What is kept between the row's forward and its backward."""

    @abstractmethod
    def peak(self, row: Row, *, checkpointing: bool) -> int:
        """The height of its forward and backward."""

    @abstractmethod
    def scored(self, row: Row) -> int:
        """The height of its forward without gradients."""


@dataclass(frozen=True)
class PackedCosts(RowCosts):
    """Of the fast path; ``correction`` is measured bytes over predicted bytes."""

    shape: ModelShape
    chunks: HeadChunks
    correction: float = 1.0

    @override
    def saved(self, row: Row, *, checkpointing: bool) -> int:
        size = cost_model.row_size(row)
        kept = cost_model.saved_bytes(self.shape, size, checkpointing=checkpointing)
        return int(self.correction * kept)

    @override
    def peak(self, row: Row, *, checkpointing: bool) -> int:
        return cost_model.row_bytes(
            self.shape,
            cost_model.row_size(row),
            chunks=self.chunks,
            checkpointing=checkpointing,
            correction=self.correction,
        )

    @override
    def scored(self, row: Row) -> int:
        size = cost_model.row_size(row)
        return cost_model.score_bytes(self.shape, size, self.chunks)


@dataclass(frozen=True)
class PaddedSize:
    """What a row's cost depends on when each of its sequences is computed whole and padded."""

    sequences: int
    longest: int
    targets: int

    @property
    def tokens(self) -> int:
        """Padding included."""
        return self.sequences * self.longest

    @property
    def pairs(self) -> int:
        """(Query, key) pairs: eager attention masks what it does not need, after computing it."""
        return self.tokens * self.longest


def padded_size(row: Row) -> PaddedSize:
    """A sequence ends at the token that its last target is read from."""
    ends = [int(row.depths[row.reads[span.stop - 1]]) + 1 for span in row.spans]
    return PaddedSize(len(ends), max(ends), len(row.targets))


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps of each padded token, each pair of a sequence, and each target."""

    token: float
    pair: float
    target: float

    def of(self, size: PaddedSize) -> float:
        """Of a row."""
        return self.token * size.tokens + self.pair * size.pairs + self.target * size.targets


def fit(measured: Sequence[tuple[PaddedSize, int]]) -> Kept:
    """From three rows of one sequence: a short one, a longer one, and that with more targets."""
    (short, of_short), (long, of_long), (read, of_read) = measured
    target = (of_read - of_long) / (read.targets - long.targets)
    by_token = [
        (kept - target * size.targets) / size.tokens
        for size, kept in ((short, of_short), (long, of_long))
    ]
    # What does not grow with the row makes a token of the shorter one dearer: that is no pair.
    pair = max(0.0, (by_token[1] - by_token[0]) / (long.longest - short.longest))
    return Kept(max(by_token) - pair * long.longest, pair, target)


@dataclass(frozen=True)
class PaddedCosts(RowCosts):
    """Of the padded path; ``whole``: what autograd keeps, ``outside``: of it, beside the layers."""

    shape: ModelShape
    whole: Kept
    outside: Kept

    @override
    def saved(self, row: Row, *, checkpointing: bool) -> int:
        return int(self._saved(padded_size(row), checkpointing=checkpointing))

    @override
    def peak(self, row: Row, *, checkpointing: bool) -> int:
        size = padded_size(row)
        saved = self._saved(size, checkpointing=checkpointing)
        # Probabilities, and logits under a soft cap, are gone when the layers' backward begins.
        logits = self.shape.vocabulary * self.shape.dtype_bytes
        capped = logits if self.outside.token >= logits else 0
        in_layers = saved - self.outside.target * size.targets - capped * size.tokens
        again = self._layer(size) if checkpointing else 0.0
        return int(max(saved + self._head(size), in_layers + again + self._layer_moving(size)))

    @override
    def scored(self, row: Row) -> int:
        size = padded_size(row)
        hidden = size.tokens * self.shape.hidden * self.shape.wide_bytes
        head = self._head(size) + self.outside.target * size.targets
        return int(2 * hidden + max(self._layer_moving(size) + self._layer(size), head))

    def _saved(self, size: PaddedSize, *, checkpointing: bool) -> float:
        if not checkpointing:
            return self.whole.of(size)
        inputs = size.tokens * self.shape.hidden * self.shape.dtype_bytes
        return self.outside.of(size) + self.shape.layers * inputs

    def _layer(self, size: PaddedSize) -> float:
        return (self.whole.of(size) - self.outside.of(size)) / self.shape.layers

    def _layer_moving(self, size: PaddedSize) -> float:
        """A layer's gradients, as large as what it kept; of pairs two are there at once."""
        pairs = (self.whole.pair - self.outside.pair) * size.pairs / self.shape.layers
        return self._layer(size) + pairs

    def _head(self, size: PaddedSize) -> float:
        """Logits of every token, their gradient, and what is read of them, over what is kept.

        A soft cap of logits keeps them: then its gradients are as large again.
        """
        vocabulary = self.shape.vocabulary
        logits = size.tokens * (vocabulary * self.shape.dtype_bytes + self.outside.token)
        read = size.targets * vocabulary * (self.shape.dtype_bytes + 2 * self.shape.wide_bytes)
        return logits + read + self.shape.head_gradient_bytes
