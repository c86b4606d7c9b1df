"""Rank 0's compute: shares work out over the ranks and adds up their results."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from torch import nn
from typing_extensions import override

from espalier.api.model.adapter import Adapter
from espalier.api.wire.problem import Problem
from espalier.api.wire.step import OptimStepRequest
from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.limits import Limits
from espalier.trainer.batch.losses import LossSpec
from espalier.trainer.batch.tally import total
from espalier.trainer.compute.adamw import Proposal, propose
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.compute.interface import Added, Batch, Compute, Referred, Share
from espalier.trainer.memory.planner import Cut, Cuts
from espalier.trainer.policy.sharding import OtherRankFailedError
from espalier.trainer.ranks.control import Control, RankLostError
from espalier.trainer.ranks.parts import Part, ReplicatedPart, ShardedPart
from espalier.trainer.ranks.shares import plan as share_out
from espalier.trainer.volume.shapes import Shapes

logger = logging.getLogger(__name__)

# Steps between two comparisons of the ranks' weights.
STEPS_PER_DIGEST = 16

P = TypeVar("P", bound=Part)
T = TypeVar("T")
U = TypeVar("U")


def end_process(error: RankLostError) -> NoReturn:
    """Ends rank 0, and with it all ranks; the restarted trainer replays the log."""
    logger.critical("%s; ending all ranks, the log is replayed when they start again", error)
    os._exit(1)


class RankedCompute(Compute, Generic[P]):
    """One policy on all ranks: ``part`` is rank 0's, the others are reached through ``control``.

    Each rank computes its share; sums, never means, so the result does not depend on the shares.
    A call that fails on one rank has been answered by all of them when it raises. ``lost`` is
    called when a rank is gone, hangs or disagrees.
    """

    def __init__(
        self, part: P, control: Control, lost: Callable[[RankLostError], NoReturn] = end_process
    ) -> None:
        self._part = part
        self._control = control
        self._lost = lost

    @property
    @override
    def limits(self) -> Limits:
        return self._part.limits

    @property
    @override
    def adapter(self) -> Adapter:
        return self._part.adapter

    @property
    @override
    def warnings(self) -> tuple[Problem, ...]:
        return self._part.warnings

    @override
    def check(self, shapes: Shapes) -> None:
        self._part.check(shapes)

    @override
    def admit(self, data: Sequence[Datum], spec: LossSpec | None = None, cuts: Cuts = ()) -> Batch:
        # Shares depend on the data alone, so a backward reaches the rank that kept its forward.
        shares = share_out(data, self._control.size, self._part.planner.costs.shape)
        known: Sequence[Cut | None] = cuts if len(cuts) == len(shares) else [None] * len(shares)
        plans = [
            self._part.plan(_of(data, share), spec, cut)
            for share, cut in zip(shares, known, strict=True)
        ]
        return Batch(tuple(data), tuple(shares), tuple(plans))

    @override
    def score(self, batch: Batch, *, keep: str = "") -> list[list[float]]:
        parts = self._each([partial(LocalCompute.score, batch=b, keep=keep) for b in _parts(batch)])
        return _together(batch, parts)

    @override
    def hold_reference(self, checkpoint: Path | None) -> None:
        if checkpoint != self._part.reference.checkpoint:
            self._all(partial(LocalCompute.hold_reference, checkpoint=checkpoint))

    @override
    def refer(self, batch: Batch) -> Referred:
        parts = self._each([partial(LocalCompute.refer, batch=b) for b in _parts(batch)])
        cuts = tuple(cut for part in parts for cut in part.cuts)
        return Referred(_together(batch, [part.logprobs for part in parts]), cuts)

    @override
    def add_loss(
        self, batch: Batch, spec: LossSpec, group_size: int | None, *, tell: bool = False
    ) -> Added:
        calls = [
            partial(LocalCompute.add_loss, batch=b, spec=spec, group_size=group_size, tell=tell)
            for b in _parts(batch)
        ]
        return _sum(batch, self._each(calls))

    @override
    def add_weights(
        self,
        batch: Batch,
        weights: Sequence[Sequence[float]],
        *,
        given: dict[str, float],
        group_size: int | None,
        forward: str = "",
    ) -> Added:
        calls = [
            partial(
                LocalCompute.add_weights,
                batch=part,
                weights=_of(weights, share),
                given=given,
                group_size=group_size,
                forward=forward,
            )
            for part, share in zip(_parts(batch), batch.shares, strict=True)
        ]
        return _sum(batch, self._each(calls))

    @override
    def drop_gradients(self) -> None:
        self._all(LocalCompute.drop_gradients)

    def _all(self, call: Callable[[P], T]) -> list[T]:
        """The same call on every rank; the results by rank."""
        return self._each([call] * self._control.size)

    def _each(self, calls: Sequence[Callable[[P], T]]) -> list[T]:
        """A call for each rank; the results by rank."""
        own, others = self._call(calls[0], calls[1:])
        return [own, *others]

    def _call(self, own: Callable[[P], T], others: Sequence[Callable[[P], U]]) -> tuple[T, list[U]]:
        """Sends a call to each other rank and does rank 0's; the lowest rank's error wins."""
        try:
            for rank, call in enumerate(others, 1):
                self._control.call(call, rank)
            outcomes: list[Any] = [self._own(own)]
            outcomes += [self._control.receive(rank) for rank in range(1, self._control.size)]
        except RankLostError as error:
            self._lost(error)
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if errors:
            # A rank that stopped because of another's failure does not know the reason.
            raise min(errors, key=lambda error: isinstance(error, OtherRankFailedError))
        return outcomes[0], outcomes[1:]

    def _own(self, call: Callable[[P], T]) -> T | Exception:
        try:
            return self._part.run(call)
        except RankLostError as error:
            # A collective does not say which rank left it.
            raise RankLostError(f"{error}; ranks that are gone: {self._control.gone()}") from error


class ReplicatedCompute(RankedCompute[ReplicatedPart]):
    """Each rank holds the whole policy and the gradients of its share; Adam's state is rank 0's."""

    _steps = 0

    @override
    def propose(self, values: OptimStepRequest, factor: float = 1.0) -> Proposal:
        asked = self._steps % STEPS_PER_DIGEST == 0
        digests = self._all(partial(ReplicatedPart.reduce, digest=asked))
        other = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if other:
            self._lost(RankLostError(f"ranks {other} hold other weights than rank 0"))
        self._steps += 1
        summed = {}
        for name, parameter in self._part.policy.parameters.items():
            summed[name] = nn.Parameter(parameter.detach())
            summed[name].grad = self._part.sums[name]
        return propose(summed, self._part.moments, values, factor=factor)

    @override
    def write(self, proposal: Proposal, directory: Path) -> None:
        self._part.write(proposal, directory)

    @override
    def install(self, proposal: Proposal) -> None:
        self._part.install(proposal)
        self._all(ReplicatedPart.copy_rank_0)

    @override
    def load(self, checkpoint: Path, moments: int | None) -> None:
        self._part.load(checkpoint, moments)
        self._all(ReplicatedPart.copy_rank_0)

    @override
    def reset(self) -> None:
        self._part.reset()
        self._all(ReplicatedPart.copy_rank_0)


class ShardedCompute(RankedCompute[ShardedPart]):
    """Each rank has its part of weights, gradients and moments, and makes its part of a step.

    All ranks read a checkpoint, each its part; rank 0 writes what all give it tensor by tensor.
    """

    @override
    def propose(self, values: OptimStepRequest, factor: float = 1.0) -> Proposal:
        # Ranks need the optimizer's values alone.
        bare = values.model_copy(
            update={"rollouts": [], "metrics": {}, "measured": {}, "cursor": {}, "batch": None}
        )
        return self._lead(
            partial(LocalCompute.propose, values=values, factor=factor),
            partial(ShardedPart.hold_proposal, values=bare, factor=factor),
        )

    @override
    def write(self, proposal: Proposal, directory: Path) -> None:
        self._lead(partial(_written, proposal=proposal, directory=directory), ShardedPart.give_held)

    @override
    def install(self, proposal: Proposal) -> None:
        self._lead(partial(LocalCompute.install, proposal=proposal), ShardedPart.install_held)

    @override
    def load(self, checkpoint: Path, moments: int | None) -> None:
        self._all(partial(LocalCompute.load, checkpoint=checkpoint, moments=moments))

    @override
    def reset(self) -> None:
        self._all(LocalCompute.reset)

    def _lead(self, own: Callable[[ShardedPart], T], other: Callable[[ShardedPart], None]) -> T:
        """One call on rank 0 and its counterpart on every other rank."""
        return self._call(own, [other] * (self._control.size - 1))[0]


def _written(part: ShardedPart, *, proposal: Proposal, directory: Path) -> Exception | None:
    """The outcome of a write. A full volume ends no rank: all have given their tensors by then."""
    try:
        part.write(proposal, directory)
    except Exception as error:
        return error
    return None


def _sum(batch: Batch, parts: Sequence[Added]) -> Added:
    rewards = tuple({datum.trajectory: datum.reward for datum in batch.data}.values())
    tally = total([part.tally for part in parts])
    told = all(part.logprobs for part, share in zip(parts, batch.shares, strict=True) if share)
    return Added(
        replace(tally, rewards=rewards, datums=len(batch.data)),
        tuple(cut for part in parts for cut in part.cuts),
        tuple(_together(batch, [part.logprobs for part in parts])) if told else (),
    )


def _together(batch: Batch, parts: Sequence[Sequence[T]]) -> list[T]:
    """The log-probs of all ranks' shares, by datum."""
    result: dict[int, T] = {}
    for share, part in zip(batch.shares, parts, strict=True):
        result |= dict(zip(share, part, strict=True))
    return [result[index] for index in range(len(batch.data))]


def _parts(batch: Batch) -> list[Batch]:
    """Every rank's share as a batch of its own."""
    return [batch.part(rank) for rank in range(len(batch.plans))]


def _of(items: Sequence[T], share: Share) -> tuple[T, ...]:
    return tuple(items[index] for index in share)
