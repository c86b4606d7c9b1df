"""A reward of kind http: a Service of the run's namespace is asked by POST.

What answers is somebody else's program: its answer is bounded in time and bytes, and no token of
ours goes to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
from pydantic_core import from_json

from espalier.rewards.failure import Failure
from espalier.rewards.number import Range
from espalier.rewards.scored import Given, Question, Written

# Of the answer; a number and a few figures fit well.
BODY_BYTES = 64 << 10
METRICS_MOST, METRIC_NAME_CHARACTERS = 8, 64
CONCURRENT = 32
_BUSY = frozenset({429, 502, 503, 504})
_PAUSE_SECONDS = 0.5
_FIGURE = Range(-1e9, 1e9)


class Service:
    """Asks one URL.

    Args:
        url: where to post.
        seconds: for one completion, repeats included.
        allowed: the rewards that it may give.
    """

    def __init__(self, url: str, seconds: float, allowed: Range) -> None:
        self._url = url
        self._seconds = seconds
        self._allowed = allowed
        self._session: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(CONCURRENT)

    async def ready(self) -> Mapping[str, object]:
        """Nothing to wait for: the Service may start later than the run."""
        return {}

    async def close(self) -> None:
        """Closes its connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def give(self, question: Question, written: Written) -> Given:
        """What the service gives for a completion."""
        content = {
            "task": {"id": question.id, "index": question.index},
            "messages": question.wire(),
            "completion": written.text,
            "answer": question.answer,
        }
        last = Failure.of("Timeout", f"no answer within {self._seconds:g} s")
        async with self._slots:
            try:
                async with asyncio.timeout(self._seconds):
                    while True:
                        found = await self._ask(content)
                        if isinstance(found, Given):
                            return found
                        last = found
                        await asyncio.sleep(_PAUSE_SECONDS)
            except TimeoutError:
                return Given(None, last)

    async def _ask(self, content: dict[str, Any]) -> Given | Failure:
        """One attempt; a Failure is worth another one."""
        if self._session is None:
            # Not the environment's proxies, and no cookies from one answer to the next.
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        try:
            async with self._session.post(
                self._url,
                json=content,
                allow_redirects=False,
                headers={"Accept-Encoding": "identity"},
            ) as answer:
                body = await _bounded(answer)
                status = answer.status
        except aiohttp.ClientError as error:
            return Failure.of("Unreachable", f"{type(error).__name__}: {error}")
        if status in _BUSY:
            return Failure.of("Unreachable", f"it answered {status}")
        if status != 200:
            redirected = ", and redirects are not followed" if 300 <= status < 400 else ""
            return Given(None, Failure.of("Raised", f"it answered {status}{redirected}"))
        if body is None:
            return Given(None, Failure.of("Malformed", f"its answer is above {BODY_BYTES} bytes"))
        return read(body, self._allowed)


async def _bounded(answer: aiohttp.ClientResponse) -> bytes | None:
    """The body; None where it is too large."""
    body = bytearray()
    async for block in answer.content.iter_chunked(BODY_BYTES):
        body += block
        if len(body) > BODY_BYTES:
            return None
    return bytes(body)


def read(body: bytes, allowed: Range) -> Given:
    """What an answer says: ``{"reward": number, "metrics": {name: number}}``."""
    try:
        content: Any = from_json(body)
    except ValueError:
        return Given(None, Failure.of("Malformed", "its answer is no JSON"))
    if not isinstance(content, dict) or "reward" not in content:
        return Given(None, Failure.of("Malformed", "its answer is no object with a reward"))
    if unknown := sorted(map(str, content.keys() - {"reward", "metrics"})):
        return Given(None, Failure.of("Malformed", f"its answer has an unknown {unknown[0]}"))
    figures = content.get("metrics", {})
    failure = _wrong(figures)
    return Given(None, failure) if failure else Given.of(allowed.judge(content["reward"]), figures)


def _wrong(figures: Any) -> Failure | None:
    if not isinstance(figures, dict) or len(figures) > METRICS_MOST:
        return Failure.of("Malformed", f"its metrics are no object of up to {METRICS_MOST} numbers")
    for name, value in figures.items():
        if not 0 < len(name) <= METRIC_NAME_CHARACTERS or not name.isprintable():
            return Failure.of("Malformed", "a metric's name is empty, too long or not printable")
        if isinstance(found := _FIGURE.judge(value, f"metric {name}"), Failure):
            return found
    return None
