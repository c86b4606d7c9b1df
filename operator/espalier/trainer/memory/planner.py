"""Cuts a batch into rows that fit in memory. Pure: equal batches are cut alike."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.packing import Row, Rows, lay_out
from espalier.trainer.memory.row_costs import RowCosts
from espalier.trainer.problems import CommandError

GIB = 1 << 30
# Cutting a shorter row saves less than checkpointing, so the next step is one datum per row.
SHORTEST_ROW = 64


@dataclass(frozen=True)
class Cut:
    """How data is cut into rows. It determines the rows, and with them the order of their sums.

    Rows have at most ``row_tokens`` unique tokens; ``checkpointing`` is of activations.
    """

    row_tokens: int
    checkpointing: bool

    def careful(self, *, checkpointing: bool) -> Cut:
        """The cut to retry with when an allocation failed: rows of half the size."""
        return Cut(max(1, self.row_tokens // 2), checkpointing)


# The cut of each rank's share, in order of rank.
Cuts = tuple[Cut, ...]
_CUTS: TypeAdapter[Cuts] = TypeAdapter(Cuts)


def cuts_json(cuts: Cuts) -> str:
    """The cuts as JSON, as the command log stores them."""
    return _CUTS.dump_json(cuts).decode()


def read_cuts(text: str) -> Cuts:
    """Inverse of ``cuts_json``; an empty tuple if the command was logged without cuts."""
    return _CUTS.validate_json(text) if text else ()


class TooLargeError(Exception):
    """A datum does not fit even alone: it needs ``needed`` of ``available`` bytes."""

    def __init__(self, datum: int, tokens: int, needed: int, available: int) -> None:
        super().__init__(f"datum {datum} of {tokens} tokens needs {needed} of {available} bytes")
        self.datum = datum
        self.tokens = tokens
        self.needed = needed
        self.available = available


@dataclass(frozen=True)
class Plan:
    """The rows of a batch; ``needed`` is the predicted peak of the largest row in bytes."""

    cut: Cut
    needed: int
    rows: Rows


@dataclass(frozen=True)
class Heap:
    """How much more memory an allocator takes than its tensors: factors, and ``margin`` bytes."""

    plain: float = 1.0
    checkpointing: float = 1.0
    margin: int = 0

    def bytes_for(self, tensors: int, *, checkpointing: bool) -> int:
        """The bytes that the process takes for ``tensors`` bytes."""
        factor = self.checkpointing if checkpointing else self.plain
        return int(factor * tensors) + self.margin


@dataclass(frozen=True)
class Planner:
    """Cuts batches for one model and device; a batch may take ``available`` bytes.

    ``checkpoints`` is whether the model supports activation checkpointing.
    """

    costs: RowCosts
    available: int
    heap: Heap = Heap()
    checkpoints: bool = True

    def with_entropy(self) -> Planner:
        """The planner of calls that differentiate entropies as well."""
        return replace(self, costs=self.costs.with_entropy())

    def plan(self, data: Sequence[Datum], row_tokens: int, no_grad: Collection[int] = ()) -> Plan:
        """Cuts data into rows of at most ``row_tokens`` that fit; raises TooLargeError.

        The datums at indices ``no_grad`` have no gradient. Shorter rows cost little and
        checkpointing costs a forward pass, so rows shrink first.
        """
        for checkpointing in (False, True) if self.checkpoints else (False,):
            for budget in _budgets(row_tokens):
                plan = self.cut(data, Cut(budget, checkpointing), no_grad)
                if plan.needed <= self.available:
                    return plan
        raise self._too_large(plan)

    def cut(self, data: Sequence[Datum], cut: Cut, no_grad: Collection[int] = ()) -> Plan:
        """Applies a given cut, whether its rows fit or not."""
        rows = lay_out(data, cut.row_tokens, no_grad)
        return Plan(cut, max((needed for needed, _ in self._needs(rows, cut)), default=0), rows)

    def holds(self, plan: Plan) -> bool:
        """Whether the graphs of all rows fit at once, which keeping a forward requires."""
        checkpointing = plan.cut.checkpointing
        kept = sum(
            self.costs.saved(row, checkpointing=checkpointing) for row in plan.rows.with_grad
        )
        return (
            self.heap.bytes_for(kept, checkpointing=checkpointing) + plan.needed <= self.available
        )

    def _needs(self, rows: Rows, cut: Cut) -> list[tuple[int, Row]]:
        """Each row with the bytes that it needs."""
        on = cut.checkpointing
        tensors = [(self.costs.peak(row, checkpointing=on), row) for row in rows.with_grad]
        tensors += [(self.costs.forward_peak(row), row) for row in rows.no_grad]
        return [(self.heap.bytes_for(count, checkpointing=on), row) for count, row in tensors]

    def _too_large(self, closest: Plan) -> TooLargeError:
        needed, row = max(self._needs(closest.rows, closest.cut), key=lambda pair: pair[0])
        ends = {span.datum: int(row.depths[row.reads[span.stop - 1]]) for span in row.spans}
        longest = max(ends, key=ends.__getitem__)
        # The last token is read as a target only, so it is not in the row.
        return TooLargeError(longest, ends[longest] + 2, needed, self.available)


def too_large(error: TooLargeError, data: Sequence[Datum]) -> CommandError:
    """The 413 that refuses the batch before anything is logged or computed."""
    return CommandError(
        413,
        "BatchTooLarge",
        f"{data[error.datum].field} of {error.tokens} tokens needs "
        f"{error.needed / GIB:.3g} GiB even alone and with activation checkpointing; "
        f"{error.available / GIB:.3g} GiB are available",
        "lower sampling.maxTokens, shorten the prompt, or give the trainer more memory "
        "(spec.trainer.template)",
    )


def _budgets(row_tokens: int) -> Iterator[int]:
    """Halves down to the shortest row, then one datum per row."""
    budget = row_tokens
    while budget > SHORTEST_ROW:
        yield budget
        budget //= 2
    yield min(budget, SHORTEST_ROW)
    yield 1
