"""The operator's side of the rollout control protocol."""

from __future__ import annotations

from typing import Protocol

import aiohttp
from pydantic import ValidationError

from espalier.api.wire import Problem, Served, ServeRequest
from espalier.controllers.trainer_client import Peer

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 30.0
UNPROCESSABLE = 422


class RolloutError(Exception):
    """The rollout refused (with a Problem) or did not answer (status 0)."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(f"{problem.reason} ({status}): {problem.detail}")
        self.status = status
        self.problem = problem

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

    def __init__(self, session: aiohttp.ClientSession, private_key: str) -> None:
        self._session = session
        self._private_key = private_key

    async def serve(self, peer: Peer, request: ServeRequest) -> Served:
        """See RolloutControl."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS, connect=CONNECT_SECONDS)
        headers = peer.headers(self._private_key)
        url = f"{peer.url}/espalier/v1/serve"
        try:
            async with self._session.post(
                url, data=request.model_dump_json(), headers=headers, timeout=timeout
            ) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            problem = Problem(detail=f"{url}: {error!r}", reason="RolloutUnreachable")
            raise RolloutError(0, problem) from error
        if answer.status >= 400:
            raise RolloutError(answer.status, _problem(text))
        try:
            return Served.model_validate_json(text)
        except ValidationError as error:
            problem = Problem(
                detail=f"the rollout's answer is not a Served: {error}",
                reason="RolloutAnswerUnknown",
                remedy="run operator and rollout images of the same version",
            )
            raise RolloutError(0, problem) from error


def _problem(text: str) -> Problem:
    try:
        return Problem.model_validate_json(text)
    except ValidationError:
        return Problem(detail=text[:400], reason="RolloutError")
