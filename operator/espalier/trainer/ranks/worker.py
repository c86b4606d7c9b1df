"""A rank above 0: it holds weights and gradients, and does what rank 0 asks until that is gone."""

from __future__ import annotations

import logging

from espalier.trainer.compute import LocalCompute
from espalier.trainer.ranks.channel import Channel, RankLostError
from espalier.trainer.ranks.collective import Collective
from espalier.trainer.ranks.messages import (
    AddLoss,
    AddWeights,
    Answered,
    Drop,
    Install,
    Reduce,
    Request,
    Score,
    encode,
    failure,
    read_asked,
)

logger = logging.getLogger(__name__)


class Worker:
    """Serves one channel."""

    def __init__(self, compute: LocalCompute, channel: Channel, reply_seconds: float) -> None:
        self._compute = compute
        self._channel = channel
        self._reply_seconds = reply_seconds
        self._collective = Collective(compute.policy.parameters)

    def run(self) -> None:
        """Returns never; raises RankLostError when rank 0 is gone, as at every shutdown."""
        while True:
            # An idle trainer is no fault, so this one wait is ended only by rank 0's end.
            asked = read_asked(self._channel.receive(None))
            try:
                answered = self._answer(asked.seq, asked.request)
            except RankLostError:
                raise
            except Exception as error:
                logger.exception("%s failed", asked.request.call)
                answered = Answered(seq=asked.seq, failure=failure(error))
            self._channel.send(encode(answered), self._reply_seconds)

    def _answer(self, seq: int, request: Request) -> Answered:
        compute = self._compute
        match request:
            case Score(data=data, cut=cut, temperature=temperature):
                batch = compute.admit(data, cuts=(cut,))
                scored = compute.score(batch, temperature, keep=request.keep)
                return Answered(seq=seq, logprobs=scored)
            case AddLoss(data=data, cut=cut, spec=spec, temperature=temperature):
                batch = compute.admit(data, spec, (cut,))
                added = compute.add_loss(batch, spec, temperature, request.group_size)
                return Answered(seq=seq, tally=added.tally, cut=added.cuts[0])
            case AddWeights(data=data, cut=cut, weights=weights, temperature=temperature):
                added = compute.add_weights(
                    compute.admit(data, cuts=(cut,)),
                    weights,
                    temperature,
                    given=request.given,
                    group_size=request.group_size,
                    forward=request.forward,
                )
                return Answered(seq=seq, tally=added.tally, cut=added.cuts[0])
            case Reduce(digest=wanted):
                digest = self._collective.digest() if wanted else ""
                self._collective.sum_gradients()
                return Answered(seq=seq, digest=digest)
            case Drop():
                compute.drop_gradients()
            case Install():
                compute.load(self._collective.broadcast())
        return Answered(seq=seq)
