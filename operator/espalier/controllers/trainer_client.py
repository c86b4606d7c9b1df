"""The operator's side of the trainer protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import aiohttp
from pydantic import ValidationError

from espalier import identity
from espalier.api.wire import Assignment, CommitPage, Problem, TrainerState
from espalier.core.names import audience

PORT = 8000
CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 60.0

T = TypeVar("T", TrainerState, CommitPage)


@dataclass(frozen=True)
class Peer:
    """A pod of a model that the operator talks to."""

    namespace: str
    model: str
    ip: str

    @property
    def url(self) -> str:
        """The pod's own address: a name would be cached past a restart."""
        host = f"[{self.ip}]" if ":" in self.ip else self.ip
        return f"http://{host}:{PORT}"

    def headers(self, private_key: str) -> dict[str, str]:
        """Headers that prove the operator to this model's pods."""
        token = identity.issue(private_key, "operator", audience(self.namespace, self.model))
        return {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}


class TrainerError(Exception):
    """The trainer refused (with a Problem) or did not answer."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(f"{problem.reason} ({status}): {problem.detail}")
        self.status = status
        self.problem = problem


class Trainer(Protocol):
    """The trainer's control routes."""

    async def assign(self, peer: Peer, assignment: Assignment) -> TrainerState:
        """Tell the trainer who trains what from where; TrainerError 409 under a lower epoch."""

    async def state(self, peer: Peer) -> TrainerState:
        """Where the trainer stands."""

    async def commits(self, peer: Peer, after: int, wait_seconds: int) -> CommitPage:
        """The commits after an index; waits for one if there is none."""


class TrainerClient:
    """Trainer over HTTP."""

    def __init__(self, session: aiohttp.ClientSession, private_key: str) -> None:
        self._session = session
        self._private_key = private_key

    async def assign(self, peer: Peer, assignment: Assignment) -> TrainerState:
        """See Trainer."""
        body = assignment.model_dump_json()
        return _parse(TrainerState, await self._call("POST", peer, "/assign", body=body))

    async def state(self, peer: Peer) -> TrainerState:
        """See Trainer."""
        return _parse(TrainerState, await self._call("GET", peer, "/train/state"))

    async def commits(self, peer: Peer, after: int, wait_seconds: int) -> CommitPage:
        """See Trainer."""
        path = f"/commits?after={after}&wait={wait_seconds}"
        text = await self._call("GET", peer, path, seconds=wait_seconds + 10.0)
        return _parse(CommitPage, text)

    async def _call(
        self,
        method: str,
        peer: Peer,
        path: str,
        *,
        body: str | None = None,
        seconds: float = ANSWER_SECONDS,
    ) -> str:
        timeout = aiohttp.ClientTimeout(total=seconds, connect=CONNECT_SECONDS)
        headers = peer.headers(self._private_key)
        try:
            async with self._session.request(
                method, f"{peer.url}{path}", data=body, headers=headers, timeout=timeout
            ) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            problem = Problem(detail=f"{peer.url}: {error!r}", reason="TrainerUnreachable")
            raise TrainerError(0, problem) from error
        if answer.status >= 400:
            raise TrainerError(answer.status, _problem(text))
        return text


def _parse(kind: type[T], text: str) -> T:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        problem = Problem(
            detail=f"the trainer's answer is not a {kind.__name__}: {error}",
            reason="TrainerAnswerUnknown",
            remedy="run operator and trainer images of the same version",
        )
        raise TrainerError(0, problem) from error


def _problem(text: str) -> Problem:
    try:
        return Problem.model_validate_json(text)
    except ValidationError:
        return Problem(detail=text[:400], reason="TrainerError")
