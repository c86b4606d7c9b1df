"""Who may call which route of the server, for every route that vLLM registers."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from espalier import identity
from espalier.core.names import GATEWAY_AUDIENCE, audience
from espalier.sampler import guard
from espalier.sampler.settings import SamplerSettings

KEYS: dict[identity.Subject, str] = {
    "operator": identity.generate_private_key(),
    "gateway": identity.generate_private_key(),
}
SETTINGS = SamplerSettings.read(
    {
        "ESPALIER_MODEL": "arith",
        "ESPALIER_NAMESPACE": "default",
        "ESPALIER_POD_UID": "uid-1",
        "ESPALIER_VOLUME": "/weights",
        "ESPALIER_BASE": "sha256:" + "a" * 64,
        "ESPALIER_PUBLIC_KEYS": identity.PublicKeys.of(KEYS["operator"], KEYS["gateway"]).text(),
        "ESPALIER_DTYPE": "float32",
        "ESPALIER_MAX_MODEL_TOKENS": "256",
        "ESPALIER_MAX_ADAPTERS": "2",
        "ESPALIER_MAX_LORA_RANK": "8",
    }
)


async def reached(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("reached")(scope, receive, send)


CLIENT = TestClient(guard.Authentication(reached, SETTINGS))


def vllm_routes() -> list[tuple[str, str]]:
    """Method and path of everything that vLLM serves when it generates."""
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    app: FastAPI = build_app(arguments, ("generate",))
    found = [
        (method, re.sub(r"\{.*?\}", "x", route.path))  # type: ignore[attr-defined]
        for route in app.routes
        if isinstance(route, Route) or hasattr(route, "methods")
        for method in route.methods or ()
    ]
    assert ("POST", "/v1/completions") in found
    return found


def authorization(
    subject: identity.Subject, name: str = SETTINGS.audience, key: str = ""
) -> dict[str, str]:
    token = identity.issue(key or KEYS[subject], subject, name)
    return {"Authorization": f"Bearer {token}"}


def test_every_route_refuses_who_has_no_token_of_ours_for_this_model() -> None:
    key = Ed25519PrivateKey.generate()
    claims = {"iss": "https://kubernetes.default.svc", "sub": "system:serviceaccount:ml:ann"}
    of_users = jwt.encode({**claims, "aud": [GATEWAY_AUDIENCE]}, key, algorithm="EdDSA")
    routes = {*vllm_routes(), *guard.CALLERS, ("GET", guard.METRICS)}
    assert len(routes) > 20
    for headers in (
        {},
        {"Authorization": f"Bearer {of_users}"},
        authorization("gateway", audience("default", "other", "rollout", "uid-1")),
    ):
        answers = {(m, p): CLIENT.request(m, p, headers=headers).status_code for m, p in routes}
        assert set(answers.values()) == {401}


def test_a_token_opens_only_the_routes_that_we_name() -> None:
    opened = {
        (method, path)
        for method, path in vllm_routes()
        if CLIENT.request(method, path, headers=authorization("operator")).status_code == 200
    }
    assert opened <= set(guard.CALLERS)
    assert ("POST", "/v1/load_lora_adapter") not in opened


@pytest.mark.parametrize(
    "credentials",
    # Made in the test: a token lives for two minutes, and this table is read at collection.
    [
        dict,
        lambda: {"Authorization": "Bearer x"},
        lambda: {"Authorization": "Basic dXNlcjpwYXNz"},
        *[
            partial(authorization, "operator", audience(*given))
            for given in (
                ("default", "other", "rollout", "uid-1"),
                ("another", "arith", "rollout", "uid-1"),
                ("default", "arith", "trainer", "uid-1"),
                ("default", "arith", "rollout", "uid-2"),
            )
        ],
        lambda: authorization("operator", key=identity.generate_private_key()),
        # The gateway's key says that it is the operator, and the other way round.
        lambda: authorization("operator", key=KEYS["gateway"]),
        lambda: authorization("gateway", key=KEYS["operator"]),
    ],
    ids=[
        "none",
        "garbage",
        "basic",
        "another model",
        "another namespace",
        "the trainer",
        "a sibling or what was here before",
        "another key",
        "the gateway as operator",
        "the operator as gateway",
    ],
)
def test_a_token_must_be_ours_and_for_this_very_pod(
    credentials: Callable[[], dict[str, str]],
) -> None:
    answer = CLIENT.post("/v1/completions", headers=credentials())
    assert (answer.status_code, answer.json()["reason"]) == (401, "Unauthenticated")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_only_the_operator_controls_what_is_served(method: str) -> None:
    refused = CLIENT.request(method, guard.SERVE, headers=authorization("gateway"))
    assert (refused.status_code, refused.json()["reason"]) == (403, "Forbidden")
    taken = CLIENT.request(method, guard.SERVE, headers=authorization("operator"))
    assert taken.text == "reached"


def test_the_token_for_scraping_opens_metrics_and_nothing_else() -> None:
    scraper = {"Authorization": f"Bearer {identity.issue_scrape(KEYS['operator'])}"}
    assert CLIENT.get(guard.METRICS, headers=scraper).text == "reached"
    for method, path in (("POST", guard.METRICS), *vllm_routes(), *guard.CALLERS):
        if (method, path) != ("GET", guard.METRICS):
            assert CLIENT.request(method, path, headers=scraper).status_code == 401
    forged = {"Authorization": f"Bearer {identity.issue_scrape(KEYS['gateway'])}"}
    for headers in ({}, forged, authorization("operator"), authorization("gateway")):
        assert CLIENT.get(guard.METRICS, headers=headers).status_code == 401


@pytest.mark.parametrize("path", guard.PROBES)
def test_probes_need_no_token(path: str) -> None:
    assert CLIENT.get(path).text == "reached"
    assert CLIENT.post(path).status_code == 401


@pytest.mark.parametrize("path", ["/healthz/", "//healthz", "/healthz/../v1/completions"])
def test_what_only_looks_like_a_probe_needs_a_token(path: str) -> None:
    assert CLIENT.get(path).status_code == 401


def test_websockets_are_closed() -> None:
    with pytest.raises(WebSocketDisconnect), CLIENT.websocket_connect("/v1/realtime"):
        pass


COMPLETIONS = "/v1/completions"


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({"Content-Encoding": "gzip"}, 415, "ContentEncodingNotTaken"),
        ({"Content-Encoding": "identity, br"}, 415, "ContentEncodingNotTaken"),
        ({"Content-Length": str(guard.MAX_BODY_BYTES + 1)}, 413, "BodyTooLarge"),
        ({"Transfer-Encoding": "chunked"}, 411, "LengthRequired"),
    ],
)
def test_a_body_is_plain_and_of_known_length(
    headers: dict[str, str], status: int, reason: str
) -> None:
    body = iter([b"{}"]) if "Transfer-Encoding" in headers else b"{}"
    answer = CLIENT.post(COMPLETIONS, headers=authorization("gateway") | headers, content=body)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert answer.json()["remedy"]


def test_a_token_of_other_characters_is_a_401() -> None:
    sent = {b"Authorization": b"Bearer \xff"}
    answer = CLIENT.post(COMPLETIONS, headers=sent)
    assert (answer.status_code, answer.json()["reason"]) == (401, "Unauthenticated")


@pytest.mark.parametrize("depth", [300, 10_000])
def test_deep_json_is_the_callers_mistake(depth: int) -> None:
    app = FastAPI()

    @app.post(COMPLETIONS)
    async def read(body: dict[str, object]) -> dict[str, int]:
        return {"fields": len(body)}

    client = TestClient(guard.Authentication(app, SETTINGS), raise_server_exceptions=False)
    body = b'{"prompt":' + b"[" * depth + b"]" * depth + b"}"
    sent = authorization("gateway") | {"Content-Type": "application/json"}
    assert client.post(COMPLETIONS, content=body, headers=sent).status_code < 500
