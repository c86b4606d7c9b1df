"""Rank 0 of several: shares work out and adds up what comes back.

Replicated ranks, each with the whole policy, also get from it what it proposed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TypeVar

from pydantic import ValidationError
from torch import nn
from typing_extensions import override

from espalier.api.wire import OptimStepRequest
from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.losses import LossSpec
from espalier.trainer.batch.step_metrics import Tally, total
from espalier.trainer.compute.adamw import Proposal, propose
from espalier.trainer.compute.compute import Added, Batch, LocalCompute, Share
from espalier.trainer.memory.planner import Cut, Cuts
from espalier.trainer.policy.policy import Policy
from espalier.trainer.policy.sharding import OtherRankFailedError
from espalier.trainer.ranks.channel import Channel, RankLostError
from espalier.trainer.ranks.collective import Collective
from espalier.trainer.ranks.messages import (
    AddLoss,
    AddWeights,
    Answered,
    Asked,
    Drop,
    Install,
    Reduce,
    Request,
    Score,
    encode,
    read_answered,
)
from espalier.trainer.ranks.shares import plan as share_out

logger = logging.getLogger(__name__)

# Ranks prove every so many steps that they trained the same weights.
STEPS_PER_DIGEST = 16

T = TypeVar("T")


def end_process(error: RankLostError) -> NoReturn:
    """Ends rank 0, and with it all ranks; the restarted trainer replays the log."""
    logger.critical("%s; ending all ranks, the log is replayed when they start again", error)
    os._exit(1)


class RankedCompute(LocalCompute):
    """The policy on this process, rank 0, and on one more per channel.

    Each rank computes its share; sums, never means, so the result does not depend on the shares.
    A call that fails on one rank has been answered by all of them when it raises.
    """

    def __init__(
        self,
        policy: Policy,
        channels: Sequence[Channel],
        *,
        reply_seconds: float,
        lost: Callable[[RankLostError], NoReturn] = end_process,
    ) -> None:
        super().__init__(policy)
        self._channels = channels
        self._reply_seconds = reply_seconds
        self._lost = lost
        self._seq = 0

    @override
    def admit(self, data: Sequence[Datum], spec: LossSpec | None = None, cuts: Cuts = ()) -> Batch:
        # Shares depend on the data alone, so a kept forward is where its weights will go.
        shares = share_out(data, len(self._channels) + 1, self.planner.costs.shape)
        known: Sequence[Cut | None] = cuts if len(cuts) == len(shares) else [None] * len(shares)
        plans = [self._plan(_of(data, s), spec, cut) for s, cut in zip(shares, known, strict=True)]
        return Batch(tuple(data), tuple(shares), tuple(plans))

    @override
    def score(self, batch: Batch, *, keep: str = "") -> list[list[float]]:
        requests = [Score(data=plan.rows.data, cut=plan.cut, keep=keep) for plan in batch.plans[1:]]
        own, others = self._ask(
            requests,
            lambda: LocalCompute.score(self, batch.part(0), keep=keep),
        )
        result: list[list[float]] = [[] for _ in batch.data]
        parts = [own, *(other.logprobs or [] for other in others)]
        for share, part in zip(batch.shares, parts, strict=True):
            for index, logprobs in zip(share, part, strict=True):
                result[index] = logprobs
        return result

    @override
    def add_loss(self, batch: Batch, spec: LossSpec, group_size: int | None) -> Added:
        requests = [
            AddLoss(
                data=plan.rows.data,
                cut=plan.cut,
                spec=spec,
                group_size=group_size,
            )
            for plan in batch.plans[1:]
        ]
        return self._add(
            batch,
            requests,
            lambda: LocalCompute.add_loss(self, batch.part(0), spec, group_size),
        )

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
        requests = [
            AddWeights(
                data=plan.rows.data,
                cut=plan.cut,
                weights=tuple(tuple(row) for row in _of(weights, share)),
                given=given,
                group_size=group_size,
                forward=forward,
            )
            for share, plan in zip(batch.shares[1:], batch.plans[1:], strict=True)
        ]
        return self._add(
            batch,
            requests,
            lambda: LocalCompute.add_weights(
                self,
                batch.part(0),
                _of(weights, batch.shares[0]),
                given=given,
                group_size=group_size,
                forward=forward,
            ),
        )

    @override
    def drop_gradients(self) -> None:
        self._ask_all(Drop(), lambda: LocalCompute.drop_gradients(self))

    def _add(self, batch: Batch, requests: Sequence[Request], own: Callable[[], Added]) -> Added:
        mine, others = self._ask(requests, own)
        tallies = [mine.tally, *(other.tally or Tally() for other in others)]
        cuts = (*mine.cuts, *(other.cut for other in others if other.cut))
        rewards = tuple({datum.trajectory: datum.reward for datum in batch.data}.values())
        tally = replace(total(tallies), rewards=rewards, datums=len(batch.data))
        return Added(tally, cuts)

    def _ask_all(self, request: Request, own: Callable[[], T]) -> tuple[T, list[Answered]]:
        return self._ask([request] * len(self._channels), own)

    def _ask(self, requests: Sequence[Request], own: Callable[[], T]) -> tuple[T, list[Answered]]:
        """Sends one request to each rank and does rank 0's part; the lowest rank's error wins."""
        try:
            return self._exchange(requests, own)
        except RankLostError as error:
            gone = [channel.peer for channel in self._channels if channel.gone]
            self._lost(RankLostError(f"{error}; ranks that are gone: {gone}"))

    def _exchange(
        self, requests: Sequence[Request], own: Callable[[], T]
    ) -> tuple[T, list[Answered]]:
        self._seq += 1
        for channel, request in zip(self._channels, requests, strict=True):
            channel.send(encode(Asked(seq=self._seq, request=request)), self._reply_seconds)
        errors: list[Exception] = []
        mine: list[T] = []
        try:
            mine.append(own())
        except RankLostError:
            raise
        except Exception as error:
            errors.append(error)
        others = [self._answer(channel) for channel in self._channels]
        errors += [
            other.failure.error(channel.peer)
            for channel, other in zip(self._channels, others, strict=True)
            if other.failure
        ]
        if errors:
            # A rank that stopped because of another's failure does not know the reason.
            raise min(errors, key=lambda error: isinstance(error, OtherRankFailedError))
        return mine[0], others

    def _answer(self, channel: Channel) -> Answered:
        try:
            answered = read_answered(channel.receive(self._reply_seconds))
        except (ValidationError, ValueError) as error:
            raise RankLostError(f"rank {channel.peer} answered nonsense: {error}") from error
        if answered.seq != self._seq:
            raise RankLostError(
                f"rank {channel.peer} answered request {answered.seq} instead of {self._seq}"
            )
        return answered


class ReplicatedCompute(RankedCompute):
    """Each rank holds the whole policy and the gradients of its share; Adam's state is rank 0's."""

    def __init__(
        self,
        policy: Policy,
        channels: Sequence[Channel],
        *,
        reply_seconds: float,
        lost: Callable[[RankLostError], NoReturn] = end_process,
    ) -> None:
        super().__init__(policy, channels, reply_seconds=reply_seconds, lost=lost)
        self._collective = Collective(policy.parameters)
        self._steps = 0

    @override
    def propose(self, values: OptimStepRequest) -> Proposal:
        digest = self._steps % STEPS_PER_DIGEST == 0
        sums, others = self._ask_all(Reduce(digest=digest), self._collective.sum_gradients)
        if digest:
            self._compare([other.digest for other in others])
        self._steps += 1
        summed = {}
        for name, parameter in self.policy.parameters.items():
            summed[name] = nn.Parameter(parameter.detach())
            summed[name].grad = sums[name]
        return propose(summed, self.moments, values)

    @override
    def install(self, proposal: Proposal) -> None:
        super().install(proposal)
        self._ask_all(Install(), self._collective.broadcast)

    @override
    def load(self, checkpoint: Path, moments: int | None) -> None:
        super().load(checkpoint, moments)
        self._ask_all(Install(), self._collective.broadcast)

    @override
    def reset(self) -> None:
        super().reset()
        self._ask_all(Install(), self._collective.broadcast)

    def _compare(self, digests: Sequence[str]) -> None:
        own = self._collective.digest()
        other = [c.peer for c, d in zip(self._channels, digests, strict=True) if d != own]
        if other:
            self._lost(RankLostError(f"ranks {other} hold other weights than rank 0"))


def _of(items: Sequence[T], share: Share) -> tuple[T, ...]:
    return tuple(items[index] for index in share)
