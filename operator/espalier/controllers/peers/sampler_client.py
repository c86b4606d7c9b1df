"""The operator's side of the rollout control protocol."""

from __future__ import annotations

from typing import Protocol

import aiohttp

from espalier.api.wire.rollout_control import Served, ServeRequest
from espalier.controllers.peers.peer import Peer, PeerCalls, PeerError
from espalier.identity import Signer
from espalier.kube.cluster import BeforeWrite, always

ANSWER_SECONDS = 30.0
UNPROCESSABLE = 422


class RolloutError(PeerError):
    """The rollout refused (with a Problem) or did not answer (status 0)."""

    @property
    def final(self) -> bool:
        """Whether asking for the same again is answered the same."""
        return self.status == UNPROCESSABLE


class RolloutControl(Protocol):
    """The rollout's control route."""

    async def serve(self, peer: Peer, request: ServeRequest) -> Served:
        """Have the adapters loaded and verified; RolloutError if that failed."""


class RolloutClient:
    """Calls rollouts at their pods' addresses."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        signer: Signer,
        before_write: BeforeWrite = always,
    ) -> None:
        self._calls = PeerCalls(session, signer, "Rollout", RolloutError, before_write)

    async def serve(self, peer: Peer, request: ServeRequest) -> Served:
        """See RolloutControl."""
        body, path = request.model_dump_json(), "/espalier/v1/serve"
        return await self._calls.call("POST", peer, path, Served, body=body, seconds=ANSWER_SECONDS)
