"""Each rank's part of the policy and of a call; ranks above 0 run the calls of rank 0."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NoReturn, Self, TypeVar

import torch
from typing_extensions import override

from espalier.api.wire.step import OptimStepRequest
from espalier.trainer.compute.adamw import Proposal
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.policy.policy import Policy
from espalier.trainer.policy.sharding import OtherRankFailedError
from espalier.trainer.problems import CommandError
from espalier.trainer.ranks.collective import Collective
from espalier.trainer.ranks.control import Control, RankLostError
from espalier.trainer.volume.shapes import State

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Part(LocalCompute):
    """One rank's part. A call is a picklable function of it, such as a partial of a method."""

    def run(self, call: Callable[[Self], T]) -> T | Exception:
        """The result of a call, or its error; RankLostError is raised and ends the process."""
        try:
            return call(self)
        except RankLostError:
            raise
        except Exception as error:
            return error


class ReplicatedPart(Part):
    """The whole policy and the gradients of this rank's share."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self._collective = Collective(policy.parameters)
        self.sums: State = {}

    def reduce(self, *, digest: bool) -> str:
        """Takes part in the sum of all ranks' gradients, which is then in rank 0's ``sums``.

        Returns the digest of the weights if it is asked for.
        """
        weights = self._collective.digest() if digest else ""
        self.sums = self._collective.sum_gradients()
        return weights

    def copy_rank_0(self) -> None:
        """Takes rank 0's weights."""
        self.take(self._collective.broadcast())


class ShardedPart(Part):
    """A part of every weight, its gradient and its moments (FSDP2)."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self._proposal: Proposal | None = None

    @override
    def run(self, call: Callable[[Self], T]) -> T | Exception:
        """As ``Part``, but only a refusal is an outcome: ranks agree on it before they go on.

        Any other error leaves the other ranks blocked in a collective, so it ends all of them.
        """
        try:
            return call(self)
        except (CommandError, OtherRankFailedError) as error:
            return error
        except RankLostError:
            raise
        except Exception as error:
            raise RankLostError(f"a rank failed in the middle of a pass: {error}") from error

    def hold_proposal(self, values: OptimStepRequest, factor: float) -> None:
        """Makes this rank's part of an optimizer step and keeps it."""
        self._proposal = self.propose(values, factor)

    def give_held(self) -> None:
        """Takes part in rank 0's write of what is kept."""
        assert self._proposal is not None
        self.give(self._proposal)

    def install_held(self) -> None:
        """Takes the part that is kept."""
        assert self._proposal is not None
        self.install(self._proposal)
        self._proposal = None


def serve(part: Part, control: Control) -> NoReturn:
    """Runs rank 0's calls; raises RankLostError when rank 0 is gone, as at every shutdown."""
    while True:
        call = control.next_call()
        answer: Any = part.run(call)
        if isinstance(answer, Exception):
            logger.error("%s failed", _name(call), exc_info=answer)
            answer = _portable(answer, control.rank)
        control.send(answer, 0)


def _portable(error: Exception, rank: int) -> Exception:
    """The error as rank 0 raises it; keeps a type that decides what happens next."""
    if isinstance(error, CommandError):
        return error
    kinds = (OtherRankFailedError, torch.OutOfMemoryError)
    kind = next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)
    return kind(f"rank {rank}: {type(error).__name__}: {error}")


def _name(call: Any) -> str:
    function = call.func if isinstance(call, functools.partial) else call
    return str(function.__name__)
