"""Hostile requests on every route of gateway and trainer: no 500, no crash, nothing by halves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.gateway.conftest import Behaviour, Gateway, Upstream
from tests.gateway.world import digest
from tests.security.fuzzing import GATEWAYS, TRAINERS, UPSTREAM, Answered, told
from tests.security.hostile_requests import PLACEHOLDER, requests, routes_of
from tests.trainer.test_bad_input import AUDIENCE, PRIVATE, standing
from tests.trainer.test_bad_input import client as trainer
from tests.trainer.tiny import Volume
from yarl import URL

from espalier import identity
from espalier.core.names import GATEWAY_AUDIENCE
from espalier.gateway.console.page import PAGE

__all__ = ["trainer"]

PASSES = 8
SOME, MANY = 600, pytest.param(10_000, marks=pytest.mark.exhaustive)


def well_refused(answers: list[Answered]) -> None:
    for answer in answers:
        assert answer.fault(UPSTREAM) == "", answer
        # A malformed head, and an Expect, are answered before anything of ours is asked.
        if answer.status >= 400 and answer.status != 417:
            problem = json.loads(answer.body)
            assert problem.get("reason") or problem["error"]["code"], answer


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
    answers = await told(served.session, base, drawn, lambda _: headers)
    well_refused(answers)
    assert "request failed" not in caplog.text
    # It reached the routes, and not the router alone.
    statuses = Counter(answer.status for answer in answers)
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
    for subject in ("gateway", "operator"):
        token = identity.issue(PRIVATE, subject, AUDIENCE, 0)
        headers = {"Authorization": f"Bearer {token}"}
        asked = drawn[subject == "operator" :: 2]
        answers = await told(trainer.session, base, asked, lambda _, headers=headers: headers)
        well_refused(answers)
        assert {200, 422} <= {answer.status for answer in answers}
        # What was refused for where training stood may be accepted now: until all of it is refused.
        for _ in range(PASSES):
            before = await standing(trainer, volume)
            again = [answer.request for answer in answers if answer.status >= 400]
            answers = await told(trainer.session, base, again, lambda *_, h=headers: h)
            well_refused(answers)
            if all(answer.status >= 400 for answer in answers):
                break
        else:
            pytest.fail("of what it refused it always accepts some")
        # It leaves no trace, neither in the state nor in the log.
        assert await standing(trainer, volume) == before
    assert (await trainer.get("/healthz")).status == 200
