"""The memory of a row, extrapolated from what autograd kept of a few short rows. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np

from espalier.trainer.batch.packing import Row
from espalier.trainer.memory.cost_model import ModelShape, RowSize


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps per token, target, attended pair and gathered key of a row."""

    token: float
    target: float
    pair: float
    gathered: float

    def of(self, size: RowSize) -> float:
        """Bytes kept for a row of this size."""
        return float(np.dot(astuple(self), astuple(size)))


def fit(measured: Sequence[tuple[RowSize, int]]) -> Kept:
    """The least-squares fit to rows of known size and kept bytes; never below one of them.

    A coefficient that comes out negative is left out: overhead that does not grow with the row
    makes short rows dearer per token, and must not count as a saving of long ones.
    """
    sizes = np.array([astuple(size) for size, _ in measured], dtype=np.float64)
    kept = np.array([of_row for _, of_row in measured], dtype=np.float64)
    found = np.zeros(sizes.shape[1])
    used = np.flatnonzero(sizes.any(axis=0))
    while len(used):
        solved = np.linalg.lstsq(sizes[:, used], kept, rcond=None)[0]
        if solved.min() >= 0.0:
            found[used] = solved
            break
        used = np.delete(used, solved.argmin())
    predicted = sizes @ found
    scale = max((kept[predicted > 0] / predicted[predicted > 0]).max(initial=1.0), 1.0)
    return Kept(*(scale * found).tolist())


@dataclass(frozen=True)
class HeadBytes:
    """Bytes of the LM head while it runs, beyond what autograd keeps of it.

    ``fixed`` is per row, ``token`` per token, ``target`` per target, and ``logits`` per target of
    the chunk that is computed at once, which has at most ``chunk`` targets.
    """

    fixed: int
    token: float
    target: float
    logits: int = 0
    chunk: int = 0

    def of(self, size: RowSize) -> float:
        """Bytes for a row of this size."""
        at_once = self.logits * min(size.targets, self.chunk)
        return self.fixed + self.token * size.tokens + self.target * size.targets + at_once


@dataclass(frozen=True)
class RowCosts:
    """Bytes of the tensors of a row, beyond what is held between batches.

    ``whole`` is what autograd keeps of a forward, ``outside`` what it keeps outside the layers,
    ``size_of`` the size of a row on the path that computes it. ``entropy`` is what it keeps per
    target on top where entropies are differentiated.
    """

    shape: ModelShape
    size_of: Callable[[Row], RowSize]
    whole: Kept
    outside: Kept
    head: HeadBytes
    entropy: float = 0.0

    def with_entropy(self) -> RowCosts:
        """The costs of rows whose entropies are differentiated as well.

        The head then holds one more copy of the logits: its chunk's, or of all that are read where
        it computes none.
        """
        copy = self.shape.vocabulary * self.shape.wide_bytes
        head = (
            replace(self.head, logits=self.head.logits + copy)
            if self.head.chunk
            else replace(self.head, target=self.head.target + copy)
        )
        return replace(
            self,
            whole=replace(self.whole, target=self.whole.target + self.entropy),
            outside=replace(self.outside, target=self.outside.target + self.entropy),
            head=head,
            entropy=0.0,
        )

    def saved(self, row: Row, *, checkpointing: bool) -> int:
        """Bytes kept between the row's forward and its backward."""
        return int(self._saved(self.size_of(row), checkpointing=checkpointing))

    def peak(self, row: Row, *, checkpointing: bool) -> int:
        """The highest use during the row's forward and backward.

        The head runs while all of ``saved`` is there. By the backward of the layers, what was
        kept for the targets is gone; the gradients of a layer are as large as what it kept, and
        with checkpointing its recomputed activations are there too.
        """
        size = self.size_of(row)
        saved = self._saved(size, checkpointing=checkpointing)
        layer = (self.whole.of(size) - self.outside.of(size)) / self.shape.layers
        backward = 2 * layer if checkpointing else layer
        in_layers = saved - self.outside.target * size.targets + backward
        return int(max(saved + self.head.of(size), in_layers))

    def forward_peak(self, row: Row) -> int:
        """An upper bound of the use during a forward without gradients.

        It keeps less than a checkpointed forward, but copies a chunk of logits that gradients
        would reuse.
        """
        at_once = min(len(row.targets), self.head.chunk)
        copy = self.shape.vocabulary * self.shape.wide_bytes * at_once
        return self.peak(row, checkpointing=True) + copy

    def _saved(self, size: RowSize, *, checkpointing: bool) -> float:
        if not checkpointing:
            return self.whole.of(size)
        inputs = size.tokens * self.shape.hidden * self.shape.dtype_bytes
        return self.outside.of(size) + self.shape.layers * inputs
