"""Rank 0 of several that hold a part of every weight each: full fine-tuning with FSDP2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from typing_extensions import override

from espalier.api.wire import OptimStepRequest
from espalier.trainer.compute.adamw import Proposal
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.policy.sharding import OtherRankFailedError
from espalier.trainer.problems import CommandError
from espalier.trainer.ranks.channel import RankLostError
from espalier.trainer.ranks.messages import Adopt, Answered, Give, Load, Propose, Request, Reset
from espalier.trainer.ranks.rank0 import RankedCompute, T


class ShardedCompute(RankedCompute):
    """Each rank has its part of weights, gradients and moments, and makes its part of a step.

    All ranks read a checkpoint, each its part; rank 0 writes what all give it tensor by tensor. A
    fault in the middle of a pass leaves ranks waiting for each other, so it ends them all.
    """

    @override
    def propose(self, values: OptimStepRequest) -> Proposal:
        # Ranks need the optimizer's values alone.
        bare = values.model_copy(
            update={"rollouts": [], "metrics": {}, "measured": {}, "cursor": {}}
        )
        return self._ask_all(Propose(values=bare), lambda: LocalCompute.propose(self, values))[0]

    @override
    def write(self, proposal: Proposal, directory: Path) -> None:
        failure, _ = self._ask_all(Give(), lambda: self._written(proposal, directory))
        if failure is not None:
            raise failure

    def _written(self, proposal: Proposal, directory: Path) -> Exception | None:
        """A full volume is no reason to end: all ranks have given what they had."""
        try:
            LocalCompute.write(self, proposal, directory)
        except Exception as error:
            return error
        return None

    @override
    def install(self, proposal: Proposal) -> None:
        self._ask_all(Adopt(), lambda: LocalCompute.install(self, proposal))

    @override
    def load(self, checkpoint: Path, moments: int | None) -> None:
        asked = Load(checkpoint=str(checkpoint), moments=moments)
        self._ask_all(asked, lambda: LocalCompute.load(self, checkpoint, moments))

    @override
    def reset(self) -> None:
        self._ask_all(Reset(), lambda: LocalCompute.reset(self))

    @override
    def _exchange(
        self, requests: Sequence[Request], own: Callable[[], T]
    ) -> tuple[T, list[Answered]]:
        return super()._exchange(requests, lambda: in_step(own))


def in_step(call: Callable[[], T]) -> T:
    """Runs a rank's part of a call; what is no refusal leaves other ranks in a collective."""
    try:
        return call()
    except (CommandError, OtherRankFailedError, RankLostError):
        raise
    except Exception as error:
        raise RankLostError(f"a rank failed in the middle of a pass: {error}") from error
