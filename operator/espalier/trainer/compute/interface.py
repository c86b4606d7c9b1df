"""The interface between the engine and the processes that hold the policy, one rank or many.

The engine decides, logs and commits; a Compute only computes. Its whole state is weights, Adam's
moments and accumulated gradients, and the log and the last checkpoint can restore it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from espalier.api.model.adapter import Adapter
from espalier.api.wire.problem import Problem
from espalier.api.wire.step import OptimStepRequest
from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.limits import Limits
from espalier.trainer.batch.losses import LossSpec
from espalier.trainer.batch.tally import Tally
from espalier.trainer.compute.adamw import Proposal
from espalier.trainer.memory.planner import Cuts, Plan
from espalier.trainer.volume.shapes import Shapes

Share = tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """The admitted datums of a call; for each rank the indices of its share, and their rows."""

    data: tuple[Datum, ...]
    shares: tuple[Share, ...]
    plans: tuple[Plan, ...]

    def holding(self, data: Sequence[Datum]) -> Batch:
        """The same batch, cut the same, of the same datums with other values."""
        plans = [
            replace(plan, rows=replace(plan.rows, data=tuple(data[index] for index in share)))
            for plan, share in zip(self.plans, self.shares, strict=True)
        ]
        return Batch(tuple(data), self.shares, tuple(plans))

    def part(self, rank: int) -> Batch:
        """A rank's share as a batch of its own."""
        plan = self.plans[rank]
        return Batch(plan.rows.data, (tuple(range(len(plan.rows.data))),), (plan,))


@dataclass(frozen=True)
class Added:
    """The tally of a call, and the cut that each rank used, for a replay to repeat.

    ``logprobs`` are those of every datum's targets, where they were asked for; ``referred`` are the
    reference's, where the loss is held near one.
    """

    tally: Tally
    cuts: Cuts
    logprobs: tuple[Tensor, ...] = ()
    referred: Sequence[Sequence[float]] | None = None


@dataclass(frozen=True)
class Referred:
    """The reference's log-probs of every datum's output tokens, and the cut that each rank used."""

    logprobs: list[list[float]]
    cuts: Cuts


class Compute(Protocol):
    """One policy on one or more ranks. Every call is complete when it returns."""

    @property
    def limits(self) -> Limits:
        """The base's limits on requests."""

    @property
    def adapter(self) -> Adapter:
        """The adapter that is trained."""

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Warnings for the user on how it computes; the results are right either way."""

    def admit(self, data: Sequence[Datum], spec: LossSpec | None = None, cuts: Cuts = ()) -> Batch:
        """Decides once how a batch is cut; computes nothing, 413 if no way to cut it fits.

        ``spec`` is the built-in loss to compute. ``cuts`` are those of a replayed call: they are
        used whatever memory there is now, so its sums are bit-equal. Another number of ranks
        ignores them and cuts the batch itself.
        """

    def score(self, batch: Batch, *, keep: str = "") -> list[list[float]]:
        """Log-probs of every datum's output tokens; accumulates nothing.

        ``keep`` names the forward for a later ``add_weights`` of the same data: a compute may then
        keep the forward pass for that call. It keeps the latest name only, until it is used or
        anything else is computed.
        """

    def hold_reference(self, checkpoint: Path | None) -> None:
        """Loads the frozen weights that ``refer`` computes by, in place of those held before.

        They take memory from batches, so call it before ``admit``. None lets go of them.
        LoRA only.
        """

    def refer(self, batch: Batch) -> Referred:
        """Log-probs as ``score``, of the reference that is held; without one, of the base.

        LoRA only: the other adapter takes the trained one's place, or none does.
        """

    def add_loss(
        self, batch: Batch, spec: LossSpec, group_size: int | None, *, tell: bool = False
    ) -> Added:
        """Accumulates the gradient of a built-in loss; ``tell`` asks for the log-probs."""

    def add_weights(
        self,
        batch: Batch,
        weights: Sequence[Sequence[float]],
        *,
        given: dict[str, float],
        group_size: int | None,
        forward: str = "",
    ) -> Added:
        """Accumulates the gradient of a client's loss from ``weights[d][t] = -dC/dlogprob``.

        ``forward`` is the name given to ``score`` as ``keep``. The sums are the same whether the
        forward was kept or not.
        """

    def drop_gradients(self) -> None:
        """Forgets what was accumulated."""

    def propose(self, values: OptimStepRequest, factor: float = 1.0) -> Proposal:
        """The weights and moments after a step; changes nothing.

        ``factor`` multiplies the accumulated gradients.
        """

    def write(self, proposal: Proposal, directory: Path) -> None:
        """Writes everything that ``load`` needs into a checkpoint's directory."""

    def install(self, proposal: Proposal) -> None:
        """Takes the latest proposal's weights and moments."""

    def check(self, shapes: Shapes) -> None:
        """409 if a checkpoint has other names or shapes than the policy."""

    def load(self, checkpoint: Path, moments: int | None) -> None:
        """Loads a checkpoint's weights, and its moments after ``moments`` optimizer steps.

        With None, Adam is before its first step.
        """

    def reset(self) -> None:
        """Returns weights and Adam to before the first step."""
