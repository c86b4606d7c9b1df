"""A pod the operator talks to, and a single HTTP call to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
from pydantic import BaseModel

from espalier import identity
from espalier.api.wire.problem import Problem
from espalier.core.names import audience
from espalier.core.pods.pods import Pod, url_host
from espalier.kube.cluster import BeforeWrite, always
from espalier.podclient import PodFaultError, read_answer
from espalier.untrusted import UnreadableError, read_model

PORT = 8000
CONNECT_SECONDS = 3.0
# A page of commits is the longest answer of all: 250 of them, each far below 8 KiB.
MAX_ANSWER_BYTES = 2 * 1024 * 1024
BAD_GATEWAY = 502
# A refusal becomes reason and message of a condition.
REASON = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}")
MAX_DETAIL_CHARS = 4000

T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class Peer:
    """A pod of a model that the operator talks to; ``role`` and ``uid`` are who must be there."""

    namespace: str
    model: str
    ip: str
    role: str
    uid: str

    @classmethod
    def of(cls, namespace: str, model: str, pod: Pod) -> Peer:
        """A pod that is Espalier's own."""
        return cls(namespace, model, pod.ip, pod.role, pod.uid)

    @property
    def url(self) -> str:
        """The pod's own address: a name would be cached past a restart."""
        return f"http://{url_host(self.ip)}:{PORT}"

    def headers(self, signer: identity.Signer) -> dict[str, str]:
        """Headers that prove the operator to this pod, and to no other."""
        name = audience(self.namespace, self.model, self.role, self.uid)
        token = identity.issue(signer.private_key, "operator", name)
        return {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}


class PeerError(Exception):
    """The pod refused (with a Problem) or did not answer (status 0).

    Status 502: it redirected, compressed its answer or answered without end.
    """

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(f"{problem.reason} ({status}): {problem.detail}")
        self.status = status
        self.problem = problem


class PeerCalls:
    """Calls of the pods of one role.

    Args:
        session: for all of them, of ``pod_session``.
        signer: proves the operator.
        role: Trainer or Rollout; the reasons of failures begin with it.
        error: what a failed call raises.
        before_write: called ahead of every call but GET.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        signer: identity.Signer,
        role: str,
        error: type[PeerError],
        before_write: BeforeWrite = always,
    ) -> None:
        self._session = session
        self._signer = signer
        self._role = role
        self._error = error
        self._before_write = before_write

    async def call(
        self,
        method: str,
        peer: Peer,
        path: str,
        answer: type[T],
        *,
        body: str | None = None,
        seconds: float,
    ) -> T:
        """The answer as its type, within ``seconds``; raises the role's error."""
        if method != "GET":
            self._before_write()
        timeout = aiohttp.ClientTimeout(total=seconds, connect=CONNECT_SECONDS)
        headers = peer.headers(self._signer)
        try:
            async with self._session.request(
                method, f"{peer.url}{path}", data=body, headers=headers, timeout=timeout
            ) as response:
                status, content = response.status, await read_answer(response, MAX_ANSWER_BYTES)
        except PodFaultError as error:
            reason = f"{self._role}{error.reason.removeprefix('Pod')}"
            problem = Problem(detail=f"{peer.url}{path}: the pod {error.detail}", reason=reason)
            raise self._error(BAD_GATEWAY, problem) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            problem = Problem(
                detail=f"{peer.url}{path}: {error!r}", reason=f"{self._role}Unreachable"
            )
            raise self._error(0, problem) from error
        if status >= 400:
            raise self._error(status, self._problem(content))
        return self._read(answer, content)

    def _read(self, kind: type[T], content: bytes) -> T:
        try:
            return read_model(kind, content)
        except UnreadableError as error:
            role = self._role.lower()
            problem = Problem(
                detail=f"the {role}'s answer is not a {kind.__name__}: {error}",
                reason=f"{self._role}AnswerUnknown",
                remedy=f"run operator and {role} images of the same version",
            )
            raise self._error(0, problem) from error

    def _problem(self, content: bytes) -> Problem:
        try:
            found = read_model(Problem, content)
        except UnreadableError:
            detail = content[:400].decode(errors="replace")
            return Problem(detail=detail, reason=f"{self._role}Error")
        return Problem(
            detail=found.detail[:MAX_DETAIL_CHARS],
            reason=found.reason if REASON.fullmatch(found.reason) else f"{self._role}Error",
            remedy=found.remedy[:MAX_DETAIL_CHARS],
        )
