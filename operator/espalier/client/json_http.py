"""JSON over HTTP with retries: one call, one idempotency key, one deadline."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp import hdrs

from espalier.api.wire.problem import Problem
from espalier.client.errors import (
    CutOffError,
    DeadlineError,
    MalformedAnswerError,
    read_problem,
    refusal,
)
from espalier.telemetry import http_client

# Each says: not now. Everything else is an answer.
RETRIED = frozenset({408, 429, 502, 503, 504, 507, 524})
# Proxies say so when they stop waiting, and Cloudflare has a number of its own.
CUT_OFF = frozenset({504, 524})
# A completion whose answer was lost is computed anew. After so many it is given up.
CUT_OFF_MOST = 3
# A connection that broke later than this was waiting for the answer.
WAITED_SECONDS = 10.0

# What the gateway reads of a trainer's or rollout's answer is less, and it passes on no more.
MAX_ANSWER_BYTES = 128 * 2**20

# A token, the file that holds it (read for every request: kubelets rotate it), or a function.
Token = str | Path | Callable[[], str]


@dataclass(frozen=True)
class Patience:
    """How long to try. All in seconds.

    Attributes:
        deadline: for a call with all its retries.
        attempt: for one request; a lost one is sent again with the same key.
        first_delay: before the first retry; doubles up to ``longest_delay``.
    """

    deadline: float = 900.0
    attempt: float = 660.0
    first_delay: float = 0.5
    longest_delay: float = 10.0


@dataclass(frozen=True)
class Answer:
    """A successful answer; header names in any case."""

    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class _NotNow:
    """Why an attempt brought no answer, the delay that was asked for, and who may have cut it off.

    ``cut_off`` is what spoke, or why there was nothing; empty where nothing was being computed.
    """

    problem: Problem
    delay: float = 0.0
    cut_off: str = ""


class Transport:
    """Sends requests to one gateway. An async context manager; not for use across event loops."""

    def __init__(self, base_url: str, token: Token, patience: Patience) -> None:
        self._base_url = base_url.rstrip("/")
        self._token = token
        self._patience = patience
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._patience.attempt, sock_connect=10),
            connector=aiohttp.TCPConnector(limit=0),
            # A proxy on the way may compress, and a little of that can be much.
            auto_decompress=False,
            headers={hdrs.ACCEPT_ENCODING: "identity"},
            middlewares=http_client.middlewares(),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        body: str | None = None,
        headers: Mapping[str, str] = {},
        *,
        waits: Callable[[Problem], None] | None = None,
        computed_anew: bool = False,
    ) -> Answer:
        """One call, retried with the same body and headers while the gateway says: not now.

        ``waits`` is told of every attempt that brought no answer; ``computed_anew``: each attempt
        costs what the first one did, so that only a few may be lost.

        Raises:
            CutOffError: the answer was lost again and again while it was being computed.
            RefusedError: the gateway answered with another error.
            MalformedAnswerError: it redirected, compressed its answer or answered without end.
            DeadlineError: it said "not now", or nothing, until the deadline.
        """
        started = time.monotonic()
        cut_off = 0
        delay = self._patience.first_delay
        while True:
            sent = time.monotonic()
            answer = await self._attempt(method, path, body, headers)
            if isinstance(answer, Answer):
                return answer
            problem = answer.problem
            if waits is not None:
                waits(problem)
            cut_off += bool(answer.cut_off)
            if computed_anew and cut_off >= CUT_OFF_MOST:
                raise _cut_off(f"{method} {path}", answer, time.monotonic() - sent)
            pause = answer.delay or delay * random.uniform(0.5, 1.0)
            if time.monotonic() + pause - started > self._patience.deadline:
                call = f"{method} {path}"
                raise DeadlineError(call, self._patience.deadline, problem.reason, problem.detail)
            await asyncio.sleep(pause)
            delay = min(delay * 2, self._patience.longest_delay)

    async def _attempt(
        self, method: str, path: str, body: str | None, headers: Mapping[str, str]
    ) -> Answer | _NotNow:
        """The answer, or why there is none yet."""
        if self._session is None:
            raise RuntimeError("use the client inside `async with`")
        sent = {**headers, "Authorization": f"Bearer {self._bearer()}"}
        if body is not None:
            sent["Content-Type"] = "application/json"
        started = time.monotonic()
        try:
            async with self._session.request(
                method,
                self._base_url + path,
                data=body,
                headers=sent,
                proxy=proxy_for(self._base_url),
                # The token and what is trained on go to the gateway that was named, nowhere else.
                allow_redirects=False,
            ) as response:
                _check_plain(f"{method} {path}", response)
                content = await _read(f"{method} {path}", response)
        except TimeoutError:
            detail = f"no answer within {self._patience.attempt:.0f} s"
            return _NotNow(Problem(detail=detail, reason="AttemptTimeout"), cut_off="nothing")
        except aiohttp.InvalidURL as error:
            raise ValueError(f"{self._base_url!r} is not the URL of a gateway") from error
        except aiohttp.ClientError as error:
            waited = time.monotonic() - started >= WAITED_SECONDS
            problem = Problem(detail=str(error) or repr(error), reason="GatewayUnreachable")
            return _NotNow(problem, cut_off="a broken connection" if waited else "")
        if response.status in RETRIED:
            asked = _seconds(response.headers.get("Retry-After", ""))
            problem = read_problem(response.status, content)
            spoke = _speaker(problem, response) if response.status in CUT_OFF else ""
            return _NotNow(problem, asked, spoke)
        if response.status >= 400:
            raise refusal(response.status, content)
        return Answer(response.headers, content)

    def _bearer(self) -> str:
        if isinstance(self._token, Path):
            return self._token.read_text().strip()
        return self._token if isinstance(self._token, str) else self._token()


def _speaker(problem: Problem, response: aiohttp.ClientResponse) -> str:
    """Who said that the answer takes too long."""
    if not problem.reason.startswith("Http"):
        return f"the gateway ({problem.reason})"
    server = response.headers.get(hdrs.SERVER, "")[:64]
    return f"what stands before the gateway ({server or 'it does not say what it is'})"


def _cut_off(call: str, last: _NotNow, seconds: float) -> CutOffError:
    problem = Problem(
        reason="AnswerCutOff",
        detail=f"{call} was sent {CUT_OFF_MOST} times and computed each time, and its answer was "
        f"cut off, the last time after {seconds:.0f} s by {last.cut_off}: {last.problem.detail}",
        remedy="Let proxies, ingresses and load balancers before the gateway wait for as long as a "
        "completion takes (ingress-nginx: nginx.ingress.kubernetes.io/proxy-read-timeout), "
        "or lower max_tokens",
    )
    return CutOffError(504, problem)


def proxy_for(url: str) -> str | None:
    """The proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name for a URL; None for none.

    Not aiohttp's ``trust_env``, which also takes a password for the host from ~/.netrc and then
    refuses to send our token.
    """
    parts = urlsplit(url)
    # As everywhere but in Python, what is on this machine (`espalier dev`) needs no proxy.
    if not parts.hostname or _is_here(parts.hostname) or proxy_bypass(parts.hostname):
        return None
    return getproxies().get(parts.scheme)


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_plain(call: str, response: aiohttp.ClientResponse) -> None:
    if 300 <= response.status < 400:
        target = response.headers.get(hdrs.LOCATION, "")[:200]
        raise MalformedAnswerError(
            f"{call} was redirected ({response.status}) to {target!r}, and that is not followed: "
            "give the client the URL of the gateway itself"
        )
    encoding = response.headers.get(hdrs.CONTENT_ENCODING, "identity")
    if encoding.lower() != "identity":
        raise MalformedAnswerError(
            f"{call} was answered in Content-Encoding {encoding[:32]!r}, which was not asked for: "
            "have what stands before the gateway not compress"
        )


async def _read(call: str, response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            raise MalformedAnswerError(
                f"the answer to {call} is over {MAX_ANSWER_BYTES // 2**20} MiB: no gateway "
                "answers so, look at what stands at the URL"
            )
    return bytes(body)


def _seconds(retry_after: str) -> float:
    """A ``Retry-After`` in seconds, at most 30; 0 for none or for a date."""
    return min(float(retry_after), 30.0) if retry_after.isdecimal() else 0.0
