"""How a batch is cut into rows so that it fits in memory. Pure: equal batches are cut alike.

What a row needs is for ``costs`` to say, by the path that computes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.packing import Row, Rows, lay_out
from espalier.trainer.memory.row_costs import RowCosts
from espalier.trainer.problems import CommandError

GIB = 1 << 30
# A row shorter than this gains less from being cut again than checkpointing costs.
SHORTEST_ROW = 64


@dataclass(frozen=True)
class Cut:
    """All that the rows of given data, and so the order of their sums, depend on.

    Rows of at most ``row_tokens`` unique tokens; ``checkpointing``: of activations.
    """

    row_tokens: int
    checkpointing: bool

    def careful(self, *, checkpointing: bool) -> Cut:
        """What is left to try when the prediction was too low."""
        return Cut(max(1, self.row_tokens // 2), checkpointing)


# How every rank cut its share, by rank.
Cuts = tuple[Cut, ...]
_CUTS: TypeAdapter[Cuts] = TypeAdapter(Cuts)


def cuts_json(cuts: Cuts) -> str:
    """The cuts as the command log keeps them."""
    return _CUTS.dump_json(cuts).decode()


def read_cuts(text: str) -> Cuts:
    """The inverse of ``cuts_json``; none for a command that was logged without."""
    return _CUTS.validate_json(text) if text else ()


class TooLargeError(Exception):
    """No way to cut the batch fits: ``needed`` and ``available`` bytes, and the datum."""

    def __init__(self, datum: int, tokens: int, needed: int, available: int) -> None:
        super().__init__(f"datum {datum} of {tokens} tokens needs {needed} of {available} bytes")
        self.datum = datum
        self.tokens = tokens
        self.needed = needed
        self.available = available


@dataclass(frozen=True)
class Plan:
    """A batch as the rows to compute; ``needed``: the predicted peak in bytes of the largest."""

    cut: Cut
    needed: int
    rows: Rows


@dataclass(frozen=True)
class Heap:
    """What an allocator holds over the bytes of the tensors at a row's peak: factors and bytes."""

    plain: float = 1.0
    checkpointing: float = 1.0
    besides: int = 0

    def held(self, tensors: int, *, checkpointing: bool) -> int:
        """The bytes that the process takes for so many of tensors."""
        factor = self.checkpointing if checkpointing else self.plain
        return int(factor * tensors) + self.besides


@dataclass(frozen=True)
class Planner:
    """Cuts batches for one model and device; ``available`` bytes may be taken by a batch.

    ``checkpoints`` is whether the model's layers can be computed again.
    """

    costs: RowCosts
    available: int
    heap: Heap = Heap()
    checkpoints: bool = True

    def plan(self, data: Sequence[Datum], row_tokens: int, no_grad: Collection[int] = ()) -> Plan:
        """Rows of at most ``row_tokens``, shorter where memory needs it; raises TooLargeError.

        The datums of the indices ``no_grad`` have no gradient. Checkpointing costs a forward pass,
        shorter rows cost little: so rows shrink first.
        """
        for checkpointing in (False, True) if self.checkpoints else (False,):
            for budget in _budgets(row_tokens):
                found = self.cut(data, Cut(budget, checkpointing), no_grad)
                if found.needed <= self.available:
                    return found
        raise self._too_large(found)

    def cut(self, data: Sequence[Datum], cut: Cut, no_grad: Collection[int] = ()) -> Plan:
        """The rows of a given cut, whether they fit or not."""
        rows = lay_out(data, cut.row_tokens, no_grad)
        needed = [self._needed(row, cut) for row in rows.with_grad]
        needed += [self._scored(row) for row in rows.no_grad]
        return Plan(cut, max(needed, default=0), rows)

    def holds(self, found: Plan) -> bool:
        """Whether the graphs of all rows fit at once, as keeping a forward needs."""
        checkpointing = found.cut.checkpointing
        kept = sum(
            self.costs.saved(row, checkpointing=checkpointing) for row in found.rows.with_grad
        )
        return self.heap.held(kept, checkpointing=checkpointing) + found.needed <= self.available

    def _needed(self, row: Row, cut: Cut) -> int:
        tensors = self.costs.peak(row, checkpointing=cut.checkpointing)
        return self.heap.held(tensors, checkpointing=cut.checkpointing)

    def _scored(self, row: Row) -> int:
        return self.heap.held(self.costs.scored(row), checkpointing=False)

    def _too_large(self, closest: Plan) -> TooLargeError:
        needs = [(self._needed(row, closest.cut), row) for row in closest.rows.with_grad]
        needs += [(self._scored(row), row) for row in closest.rows.no_grad]
        needed, worst = max(needs, key=lambda pair: pair[0])
        last = max(worst.spans, key=lambda span: int(worst.depths[worst.reads[span.stop - 1]]))
        tokens = int(worst.depths[worst.reads[last.stop - 1]]) + 2
        return TooLargeError(last.datum, tokens, needed, self.available)


def too_large(error: TooLargeError, data: Sequence[Datum]) -> CommandError:
    """413: refused before anything was logged or computed."""
    trajectory = data[error.datum].trajectory
    turn = sum(datum.trajectory == trajectory for datum in data[: error.datum])
    return CommandError(
        413,
        "BatchTooLarge",
        f"inputs[{trajectory}].samples[{turn}] of {error.tokens} tokens needs "
        f"{error.needed / GIB:.3g} GiB even alone and with activation checkpointing; "
        f"{error.available / GIB:.3g} GiB are available",
        "lower sampling.maxTokens, shorten the prompt, or give the trainer more memory "
        "(spec.trainer.template)",
    )


def _budgets(row_tokens: int) -> Iterator[int]:
    """Halves down to the shortest row, then every datum alone."""
    budget = row_tokens
    while budget > SHORTEST_ROW:
        yield budget
        budget //= 2
    yield min(budget, SHORTEST_ROW)
    yield 1
