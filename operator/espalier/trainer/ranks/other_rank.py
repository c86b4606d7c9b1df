"""A rank above 0: it holds weights and gradients, and does what rank 0 asks until that is gone."""

from __future__ import annotations

import logging
from pathlib import Path

from espalier.trainer.compute.adamw import Proposal
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.ranks.channel import Channel, RankLostError
from espalier.trainer.ranks.collective import Collective
from espalier.trainer.ranks.messages import (
    AddLoss,
    AddWeights,
    Adopt,
    Answered,
    Asked,
    Drop,
    Give,
    Install,
    Load,
    Propose,
    Reduce,
    Request,
    Reset,
    Score,
    encode,
    failure,
    read_asked,
)
from espalier.trainer.ranks.sharded import in_step

logger = logging.getLogger(__name__)


class Worker:
    """Serves one channel."""

    def __init__(self, compute: LocalCompute, channel: Channel, reply_seconds: float) -> None:
        self._compute = compute
        self._channel = channel
        self._reply_seconds = reply_seconds
        self._sharded = compute.policy.sharding.size > 1
        self._collective = None if self._sharded else Collective(compute.policy.parameters)
        self._proposal: Proposal | None = None

    def run(self) -> None:
        """Returns never; raises RankLostError when rank 0 is gone, as at every shutdown."""
        while True:
            # An idle trainer is no fault, so this one wait is ended only by rank 0's end.
            asked = read_asked(self._channel.receive(None))
            try:
                answered = self._part(asked)
            except RankLostError:
                raise
            except Exception as error:
                logger.exception("%s failed", asked.request.call)
                answered = Answered(seq=asked.seq, failure=failure(error))
            self._channel.send(encode(answered), self._reply_seconds)

    def _part(self, asked: Asked) -> Answered:
        if self._sharded:
            return in_step(lambda: self._answer_sharded(asked.seq, asked.request))
        return self._answer_replicated(asked.seq, asked.request)

    def _answer(self, seq: int, request: Request) -> Answered:
        """What is the same wherever the weights are."""
        compute = self._compute
        match request:
            case Score(data=data, cut=cut):
                batch = compute.admit(data, cuts=(cut,))
                scored = compute.score(batch, keep=request.keep)
                return Answered(seq=seq, logprobs=scored)
            case AddLoss(data=data, cut=cut, spec=spec):
                batch = compute.admit(data, spec, (cut,))
                added = compute.add_loss(batch, spec, request.group_size)
                return Answered(seq=seq, tally=added.tally, cut=added.cuts[0])
            case AddWeights(data=data, cut=cut, weights=weights):
                added = compute.add_weights(
                    compute.admit(data, cuts=(cut,)),
                    weights,
                    given=request.given,
                    group_size=request.group_size,
                    forward=request.forward,
                )
                return Answered(seq=seq, tally=added.tally, cut=added.cuts[0])
            case Drop():
                compute.drop_gradients()
                return Answered(seq=seq)
        raise ValueError(f"{request.call} is for ranks that hold the weights in another way")

    def _answer_replicated(self, seq: int, request: Request) -> Answered:
        assert self._collective is not None
        match request:
            case Reduce(digest=wanted):
                digest = self._collective.digest() if wanted else ""
                self._collective.sum_gradients()
                return Answered(seq=seq, digest=digest)
            case Install():
                self._compute.take(self._collective.broadcast())
                return Answered(seq=seq)
        return self._answer(seq, request)

    def _answer_sharded(self, seq: int, request: Request) -> Answered:
        compute = self._compute
        match request:
            case Propose(values=values):
                self._proposal = compute.propose(values)
            case Give() if self._proposal is not None:
                compute.give(self._proposal)
            case Adopt() if self._proposal is not None:
                compute.install(self._proposal)
                self._proposal = None
            case Load(checkpoint=path, moments=moments):
                compute.load(Path(path), moments)
            case Reset():
                compute.reset()
            case _:
                return self._answer(seq, request)
        return Answered(seq=seq)
