"""A reward of kind http against a real server that does its worst."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from espalier.client import Completion
from espalier.rewards.number import Range
from espalier.rewards.scored import Given, Question
from espalier.rewards.service import BODY_BYTES, Service

QUESTION = Question(3, "t/3", (("user", "1+1?"),), "2")
WRITTEN = Completion("it is 2 \ud800", (1,), (2, 0), (-0.5, -0.5), "stop")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Asked = Callable[..., Awaitable[Given]]


@pytest.fixture
async def asked() -> AsyncIterator[Asked]:
    """Asks a service that a handler makes; ends the servers."""
    servers: list[TestServer] = []

    async def ask(handler: Handler, seconds: float = 2.0) -> Given:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        service = Service(str(server.make_url("/score")), seconds, Range(0, 1))
        try:
            return await service.give(QUESTION, WRITTEN)
        finally:
            await service.close()

    yield ask
    for server in servers:
        await server.close()


def says(content: object, status: int = 200) -> Handler:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, status=status)

    return handler


def of(given: Given) -> tuple[str, str]:
    assert given.reward is None
    assert given.failure is not None
    return given.failure.cause, given.failure.detail


async def test_it_is_posted_what_was_asked_and_written_and_no_token(asked: Asked) -> None:
    seen: list[tuple[str, str, dict[str, object], set[str]]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        headers = {name.lower() for name in request.headers}
        seen.append((request.method, request.path, await request.json(), headers))
        return web.json_response({"reward": 0.25, "metrics": {"length": 7}})

    given = await asked(handler)
    assert given == Given(0.25, None, {"length": 7})
    ((method, path, body, headers),) = seen
    assert (method, path) == ("POST", "/score")
    assert body == {
        "task": {"id": "t/3", "index": 3},
        "messages": [{"role": "user", "content": "1+1?"}],
        "completion": WRITTEN.text,
        "answer": "2",
    }
    assert not headers & {"authorization", "cookie"}


ANSWERS: dict[str, tuple[object, int, str, str]] = {
    "nothing": (b"", 200, "Malformed", "no JSON"),
    "text": (b"high", 200, "Malformed", "no JSON"),
    "no object": ([1], 200, "Malformed", "no object with a reward"),
    "no reward": ({"metrics": {}}, 200, "Malformed", "no object with a reward"),
    "null": ({"reward": None}, 200, "Malformed", "no number, but nothing"),
    "a string": ({"reward": "1"}, 200, "Malformed", "no number, but text"),
    "a boolean": ({"reward": True}, 200, "Malformed", "no number, but true or false"),
    "a list": ({"reward": [1]}, 200, "Malformed", "no number, but a list"),
    "not a number": (b'{"reward": NaN}', 200, "NotFinite", "nan"),
    "endless": (b'{"reward": Infinity}', 200, "NotFinite", "inf"),
    "too much": ({"reward": 1.5}, 200, "OutOfRange", "from 0 to 1"),
    "a huge integer": (b'{"reward": 1' + b"0" * 400 + b"}", 200, "OutOfRange", "from 0 to 1"),
    "an unknown field": ({"reward": 1, "score": 1}, 200, "Malformed", "an unknown score"),
    "metrics of text": ({"reward": 1, "metrics": {"a": "b"}}, 200, "Malformed", "metric a"),
    "nine metrics": (
        {"reward": 1, "metrics": {str(n): n for n in range(9)}},
        *(200, "Malformed", "up to 8 numbers"),
    ),
    "a gigabyte": (b" " * (BODY_BYTES + 1), 200, "Malformed", "above 65536 bytes"),
    "compressed": (gzip.compress(b'{"reward": 1}'), 200, "Malformed", "no JSON"),
    "an error": ({"reward": 1}, 500, "Raised", "it answered 500"),
    "not found": ({"reward": 1}, 404, "Raised", "it answered 404"),
    "created": ({"reward": 1}, 201, "Raised", "it answered 201"),
    "deeply nested": (b"[" * 60_000, 200, "Malformed", "no JSON"),
}


@pytest.mark.parametrize("case", ANSWERS.values(), ids=ANSWERS.keys())
async def test_what_is_no_reward_is_a_failure_by_cause(
    asked: Asked, case: tuple[object, int, str, str]
) -> None:
    content, status, cause, detail = case
    found = of(await asked(says(content, status)))
    assert found[0] == cause, found
    assert detail in found[1], found


async def test_an_answer_that_says_it_is_compressed_is_not_inflated(asked: Asked) -> None:
    async def bomb(request: web.Request) -> web.StreamResponse:
        body = gzip.compress(b" " * (1 << 24) + b'{"reward": 1}')
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    assert of(await asked(bomb)) == ("Malformed", "its answer is no JSON")


async def test_a_redirect_is_not_followed(asked: Asked) -> None:
    paths: list[str] = []

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        if request.path == "/score":
            raise web.HTTPTemporaryRedirect("/other")
        return web.json_response({"reward": 1})

    cause, detail = of(await asked(elsewhere))
    assert (cause, detail) == ("Raised", "it answered 307, and redirects are not followed")
    assert paths == ["/score"]


async def test_a_service_that_hangs_is_left_within_its_time(asked: Asked) -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.json_response({"reward": 1})

    assert of(await asked(hang, seconds=0.2)) == ("Timeout", "no answer within 0.2 s")


async def test_a_body_that_never_ends_is_left_within_its_bytes(asked: Asked) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b" " * 4096)
            await asyncio.sleep(0)

    assert of(await asked(drip))[0] == "Malformed"


async def test_a_busy_service_is_asked_again_within_its_time(asked: Asked) -> None:
    asked_for: list[int] = []

    async def soon(request: web.Request) -> web.StreamResponse:
        asked_for.append(1)
        if len(asked_for) == 1:
            raise web.HTTPServiceUnavailable
        return web.json_response({"reward": 1})

    assert await asked(soon) == Given(1.0)
    assert of(await asked(says({}, 503), seconds=0.2)) == ("Unreachable", "it answered 503")


async def test_nobody_there_is_unreachable_and_no_0() -> None:
    service = Service("http://127.0.0.1:1/", 0.2, Range())
    assert of(await service.give(QUESTION, WRITTEN))[0] == "Unreachable"
    await service.close()
