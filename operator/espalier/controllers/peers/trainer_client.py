"""The operator's side of the trainer protocol."""

from __future__ import annotations

from typing import Protocol

import aiohttp

from espalier.api.wire.commits import CommitPage
from espalier.api.wire.trainer import Assignment, TrainerState, Usage
from espalier.controllers.peers.peer import Peer, PeerCalls, PeerError
from espalier.identity import Signer
from espalier.kube.cluster import BeforeWrite, always

ANSWER_SECONDS = 60.0


class TrainerError(PeerError):
    """The trainer refused (with a Problem) or did not answer."""


class Trainer(Protocol):
    """The trainer's control routes."""

    async def assign(self, peer: Peer, assignment: Assignment) -> TrainerState:
        """Tell the trainer who trains what from where; TrainerError 409 under a lower term."""

    async def state(self, peer: Peer) -> TrainerState:
        """Where the trainer stands."""

    async def commits(self, peer: Peer, after: int, wait_seconds: int) -> CommitPage:
        """The commits after an index; waits for one if there is none."""

    async def usage(self, peer: Peer) -> Usage:
        """The time since the last call of the trainer."""


class TrainerClient:
    """Trainer over HTTP."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        signer: Signer,
        before_write: BeforeWrite = always,
    ) -> None:
        self._calls = PeerCalls(session, signer, "Trainer", TrainerError, before_write)

    async def assign(self, peer: Peer, assignment: Assignment) -> TrainerState:
        """See Trainer."""
        body = assignment.model_dump_json()
        return await self._calls.call(
            "POST", peer, "/assign", TrainerState, body=body, seconds=ANSWER_SECONDS
        )

    async def state(self, peer: Peer) -> TrainerState:
        """See Trainer."""
        return await self._calls.call(
            "GET", peer, "/train/state", TrainerState, seconds=ANSWER_SECONDS
        )

    async def commits(self, peer: Peer, after: int, wait_seconds: int) -> CommitPage:
        """See Trainer."""
        path = f"/commits?after={after}&wait={wait_seconds}"
        return await self._calls.call("GET", peer, path, CommitPage, seconds=wait_seconds + 10.0)

    async def usage(self, peer: Peer) -> Usage:
        """See Trainer."""
        return await self._calls.call("GET", peer, "/usage", Usage, seconds=ANSWER_SECONDS)
