"""Control of trainers and rollouts that stops once this replica may have been superseded."""

from __future__ import annotations

from espalier.api.wire import Assignment, CommitPage, Served, ServeRequest, TrainerState, Usage
from espalier.controllers.peers.peer import Peer
from espalier.controllers.peers.sampler_client import RolloutControl
from espalier.controllers.peers.trainer_client import Trainer
from espalier.kube.fence import Check


class FencedTrainer:
    """Trainer that is told nothing once ``check`` raises; it may still be read."""

    def __init__(self, trainer: Trainer, check: Check) -> None:
        self._trainer = trainer
        self._check = check

    async def assign(self, peer: Peer, assignment: Assignment) -> TrainerState:
        """See Trainer."""
        self._check()
        return await self._trainer.assign(peer, assignment)

    async def state(self, peer: Peer) -> TrainerState:
        """See Trainer."""
        return await self._trainer.state(peer)

    async def commits(self, peer: Peer, after: int, wait_seconds: int) -> CommitPage:
        """See Trainer."""
        return await self._trainer.commits(peer, after, wait_seconds)

    async def usage(self, peer: Peer) -> Usage:
        """See Trainer."""
        return await self._trainer.usage(peer)


class FencedRollouts:
    """RolloutControl that moves nothing once ``check`` raises."""

    def __init__(self, rollouts: RolloutControl, check: Check) -> None:
        self._rollouts = rollouts
        self._check = check

    async def serve(self, peer: Peer, request: ServeRequest) -> Served:
        """See RolloutControl."""
        self._check()
        return await self._rollouts.serve(peer, request)
