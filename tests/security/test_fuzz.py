"""Hostile requests on every route of gateway and trainer: no 500, no crash, nothing by halves."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.gateway.conftest import Behaviour, Gateway, Upstream
from tests.gateway.world import digest
from tests.security.hostile_requests import PLACEHOLDER, Hostile, requests, routes_of
from tests.trainer import tiny
from tests.trainer.test_bad_input import AUDIENCE, PRIVATE, batch, standing
from tests.trainer.test_bad_input import client as trainer
from tests.trainer.tiny import Volume
from yarl import URL

from espalier import identity
from espalier.core.names import GATEWAY_AUDIENCE
from espalier.gateway.console.page import PAGE

__all__ = ["trainer"]

AT_ONCE = 8
SOME, MANY = 600, pytest.param(10_000, marks=pytest.mark.exhaustive)
SAMPLE = {"prompt_token_ids": [1, 2], "output_token_ids": [3], "output_logprobs": [-1.0]}
GATEWAYS: list[dict[str, Any]] = [
    {"model": "arith", "prompt": "1+1=", "max_tokens": 1, "n": 1, "logprobs": 1},
    {"model": "arith", "messages": [{"role": "user", "content": [{"type": "text", "text": "1"}]}]},
    {
        "model": "arith",
        "messages": [{"role": "user", "content": "1"}, {"role": "user", "content": "2"}],
        "prompt_token_ids": [1, 2],
        "continuation_from": 1,
        "structured_outputs": {"regex": "a{1,9}"},
    },
    {"inputs": [{"samples": [SAMPLE], "reward": 1.0}], "loss_fn": "ppo", "group_size": 1},
    {"learning_rate": 1e-3, "metrics": {"a": 1.0}},
    {"base": "arith", "name": "forked", "checkpoint": "arith-000001", "model": "arith"},
    {"name": "held-out", "tasks": 3, "metrics": {"mean_reward": 0.5}},
    {"checkpoint_id": "arith-000001", "reward": 1.0, "model": "arith"},
]
TRAINERS: list[dict[str, Any]] = [
    json.loads(batch()),
    json.loads(batch(first={"advantage": 0.5}, weights=[1.0, 1.0])),
    {"forward_id": "0" * 32, "weights": [[1.0, -1.0]]},
    {
        "learning_rate": 1e-3,
        "eps": 1e-8,
        "metrics": {"a": 1.0},
        "cursor": {"a": [1]},
        "rollouts": [],
    },
    json.loads(tiny.assignment().model_dump_json()),
    {"model": "arith", "reward": 1.0, "samples": [SAMPLE], "checkpoint_id": "arith-000001"},
    {},
]
# What a pod that is not ready, or not ours, is told as; never a fault of the gateway.
UPSTREAM = {502, 503, 504}


async def told(
    session: aiohttp.ClientSession, base: str, drawn: list[Hostile], headers: dict[str, str]
) -> list[tuple[Hostile, int, bytes]]:
    """The answer to each request."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(request: Hostile) -> tuple[Hostile, int, bytes]:
        async with slots:
            answer = await session.request(
                request.method,
                URL(base + request.path, encoded=True),
                data=request.body,
                headers={**headers, **request.headers},
                timeout=aiohttp.ClientTimeout(total=60),
            )
            return request, answer.status, await answer.read()

    return [*await asyncio.gather(*(one(request) for request in drawn))]


def well_refused(answers: list[tuple[Hostile, int, bytes]]) -> None:
    for request, status, body in answers:
        assert status < 500 or status in UPSTREAM, (request, status, body)
        # Nothing of the inside is told: no traceback, no file of the program.
        assert b"Traceback" not in body and b".py" not in body, (request, body)
        # A malformed head, and an Expect, are answered before anything of ours is asked.
        if status >= 400 and status != 417:
            problem = json.loads(body)
            assert problem.get("reason") or problem["error"]["code"], (request, body)


@pytest.fixture
async def served(
    gateway: Gateway, upstream: Callable[[Behaviour], Awaitable[Upstream]]
) -> AsyncIterator[Gateway]:
    """A gateway with a model whose sampler and trainer answer whatever they are asked."""

    async def pod(request: web.Request) -> web.Response:
        if request.path.startswith("/v1/"):
            return web.json_response({"model": "arith@a1a1a1a1a1a1", "choices": [{"text": "2"}]})
        return web.json_response({"metrics": {}, "num_datums": 1})

    port = (await upstream(pod)).port
    model = gateway.world.model("arith")
    gateway.world.head(model, digest("a1"), step=1, checkpoint="arith-000001")
    gateway.world.checkpoint(model, "arith-000001", digest("a1"))
    gateway.world.run(model, "arith")
    for role, name in (("rollout", "arith-rollout-x"), ("trainer", "arith-trainer-0")):
        gateway.world.pod(model, name, role=role, ip="127.0.0.1", port=port)
    yield gateway


@pytest.mark.parametrize("count", [SOME, MANY])
async def test_no_request_is_too_hostile_for_the_gateway(
    served: Gateway, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    app = served.server.app
    # But those whose answer does not end.
    routes = [route for route in routes_of(app) if not route[1].endswith("/changes")]
    assert ("POST", "/v1/chat/completions") in routes
    assert len(routes) > 20
    drawn = [*requests(routes, GATEWAYS, count)]
    base = str(served.server.make_url("/")).rstrip("/")
    headers = {"Authorization": f"Bearer {served.users.trainer}"}
    answers = await told(served.session, base, drawn, headers)
    well_refused(answers)
    assert "request failed" not in caplog.text
    # It reached the routes, and not the router alone.
    statuses = Counter(status for _, status, _ in answers)
    assert statuses[200] > count / 20
    assert {400, 404, 405, 415, 422} <= statuses.keys()
    assert (await served.get("/healthz")).status == 200


async def test_whoever_is_nobody_gets_nothing_but_health_from_any_route(served: Gateway) -> None:
    base = str(served.server.make_url("/")).rstrip("/")
    for headers in (
        {},
        {"Authorization": "Bearer x"},
        {"Authorization": "Bearer eyJhbGciOiJub25lIn0.e30."},
    ):
        for method, path in routes_of(served.server.app):
            named = path.replace("{id}", "0" * 32)
            body = {"model": "arith", "prompt": "1"}
            url = URL(base + named.replace("{", "").replace("}", ""))
            answer = await served.session.request(method, url, json=body, headers=headers)
            if path.endswith(("/healthz", "/readyz")):
                assert answer.status == 200
            elif path in PAGE:
                # Files for everybody, where they are built.
                assert answer.status in (200, 404)
            else:
                # A path that the placeholder's own name does not fit is no route at all.
                assert answer.status in (401, 404), (method, path, answer.status)
                assert b"arith" not in await answer.read()


async def test_whoever_is_nobody_gets_nothing_but_health_from_a_trainer(
    trainer: TestClient[Any, Any],
) -> None:
    """Nobody is who has no token, a token of Kubernetes, or ours for another model's trainer."""
    key = Ed25519PrivateKey.generate()
    claims = {"iss": "https://kubernetes.default.svc", "sub": "system:serviceaccount:ml:ann"}
    of_users = jwt.encode({**claims, "aud": [GATEWAY_AUDIENCE]}, key, algorithm="EdDSA")
    of_others = identity.issue(PRIVATE, "gateway", "default/other/trainer/uid-1", 0)
    credentials = [{}, *({"Authorization": f"Bearer {text}"} for text in (of_users, of_others))]
    routes = routes_of(trainer.app)
    assert len(routes) > 20
    for method, path in routes:
        for headers in credentials:
            named = PLACEHOLDER.sub("1", path)
            answer = await trainer.request(method, named, headers=headers, data=b"{")
            health = path in ("/healthz", "/readyz")
            assert answer.status == (200 if health else 401), (method, path)


@pytest.mark.parametrize("count", [SOME, MANY])
async def test_no_request_is_too_hostile_for_the_trainer(
    trainer: TestClient[Any, Any], volume: Volume, count: int
) -> None:
    routes = routes_of(trainer.app)
    assert ("POST", "/train/forward-backward") in routes
    base = str(trainer.make_url("/")).rstrip("/")
    # A poll that waits is answered by a commit or after half a minute.
    drawn = [r for r in requests(routes, TRAINERS, count) if not r.path.startswith("/commits?")]
    before = await standing(trainer, volume)
    for subject in ("gateway", "operator"):
        token = identity.issue(PRIVATE, subject, AUDIENCE, 0)
        headers = {"Authorization": f"Bearer {token}"}
        answers = await told(trainer.session, base, drawn[subject == "operator" :: 2], headers)
        well_refused(answers)
        taken = [r for r, status, _ in answers if status < 300 and r.method == "POST"]
        now = await standing(trainer, volume)
        # What was refused left no trace, neither in the state nor in the log.
        assert now == before or taken
        before = now
    assert (await trainer.get("/healthz")).status == 200
