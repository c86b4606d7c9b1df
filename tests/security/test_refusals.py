"""Every kind of refusal: its status, its count, nothing told that its caller did not know; and the
next request is served.
"""

from __future__ import annotations

import asyncio
import json
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from dev.apiserver import ApiServer
from prometheus_client import REGISTRY
from tests.gateway.conftest import GATEWAY_AUDIENCE, token
from tests.gateway.hostile import BOMB, DEEP, MIB, Hostile, gateway
from tests.gateway.process import PATIENCE_SECONDS, apply
from tests.sampler.test_guard import CLIENT, SETTINGS, authorization
from tests.trainer import tiny
from tests.trainer.test_bad_input import AUDIENCE, LIMIT_BYTES, PRIVATE, batch
from tests.trainer.test_bad_input import client as trainer

from espalier import identity
from espalier.api.meta import API_VERSION
from espalier.gateway.prometheus import PodReasons
from espalier.sampler import guard
from espalier.trainer.http.site import Site

__all__ = ["trainer"]

COMPLETIONS = "/v1/completions"
# Of files, and of Python's errors.
HERE = str(Path(__file__).parents[2])
NEVER_TOLD = (HERE, "/tmp", "/weights", ".py", "site-packages", "Traceback", " at 0x")
GARBAGE = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJnYXRld2F5In0."
MODEL = {
    "apiVersion": API_VERSION,
    "kind": "TrainableModel",
    "metadata": {"name": "hidden"},
    "spec": {
        "source": {"base": {"image": "registry.example/model:1"}},
        "storage": {"persistentVolumeClaim": {"claimName": "weights"}},
    },
}


def assert_tells_nothing(answer: bytes, *secrets: str) -> None:
    text = answer.decode()
    assert not [word for word in (*NEVER_TOLD, *secrets) if word in text], text


@dataclass
class Served:
    """A gateway, accounts that may less than its trainer, and a namespace apart that it serves."""

    gateway: Hostile
    viewer: str
    spender: str
    apart: str

    def count(self, reason: str) -> float:
        series = f'espalier_gateway_refused_requests_total{{reason="{reason}"}} '
        lines = self.gateway.metrics().splitlines()
        return sum(float(line.removeprefix(series)) for line in lines if line.startswith(series))

    def sample(self, token: str | None = None, *lines: str, **fields: Any) -> tuple[int, bytes]:
        body = {"model": "arith", "prompt": "hello"} | fields
        return self.gateway.post(COMPLETIONS, json.dumps(body).encode(), *lines, token=token)

    def head(self, lines: str) -> tuple[int, bytes]:
        return self.gateway.send(lines.encode())


@pytest.fixture(scope="module")
def served(apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    namespace = f"refused-{uuid.uuid4().hex[:8]}"
    apart = f"apart-{uuid.uuid4().hex[:8]}"
    apiserver.create_namespace(apart)
    apply(apiserver, apart, MODEL)
    log = tmp_path_factory.mktemp("refused") / "log"
    settings = {"ESPALIER_NAMESPACES": f"{namespace},{apart}", "ESPALIER_QUOTA_REQUESTS": "2"}
    with gateway(apiserver, namespace, log, **settings) as running:
        tokens = {}
        for name, role in (("viewer", "viewer"), ("spender", "trainer")):
            apiserver.kubectl("create", "serviceaccount", name, "-n", namespace)
            binding = ("create", "rolebinding", name, "-n", namespace, f"--role={role}")
            apiserver.kubectl(*binding, f"--serviceaccount={namespace}:{name}")
            tokens[name] = token(apiserver, namespace, name, GATEWAY_AUDIENCE)
        yield Served(running, apart=apart, **tokens)


def over_its_quota(served: Served) -> tuple[int, bytes]:
    """One request more than a caller may have of a model at once."""
    body = json.dumps({"model": "arith", "prompt": "silent"}).encode()
    head = (
        f"POST {COMPLETIONS} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {served.spender}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with ExitStack() as stack:
        for _ in range(2):
            one = socket.create_connection(("127.0.0.1", served.gateway.port), timeout=30)
            stack.enter_context(one).sendall(head.encode() + body)
            assert served.gateway.pod.silent.acquire(timeout=PATIENCE_SECONDS)
        return served.sample(served.spender)


Refused = tuple[int, str, Callable[[Served], tuple[int, bytes]]]
BY_THE_GATEWAY: dict[str, Refused] = {
    "no token": (401, "NoToken", lambda s: s.sample("")),
    "a token of nobody": (401, "TokenRefused", lambda s: s.sample(GARBAGE)),
    "a token that is none": (401, "TokenMalformed", lambda s: s.sample("\xff")),
    "no right to sample": (403, "Forbidden", lambda s: s.sample(s.viewer)),
    "no right at all": (403, "Forbidden", lambda s: s.sample(s.gateway.stranger)),
    "another namespace's model": (404, "ModelNotFound", lambda s: s.sample(model="hidden")),
    "a run of another namespace": (
        404,
        "RunNotFound",
        lambda s: s.head(
            f"GET /v1/runs/{s.gateway.namespace}/hidden HTTP/1.1\nHost: g\n"
            f"Authorization: Bearer {s.gateway.trainer}\n"
        ),
    ),
    "a route that is none": (404, "NoSuchRoute", lambda s: s.gateway.post("/v1/../etc", b"{}")),
    "another method": (
        405,
        "MethodNotAllowed",
        lambda s: s.head("DELETE /v1/models HTTP/1.1\nHost: g\n"),
    ),
    "a large body": (
        413,
        "BodyTooLarge",
        lambda s: s.head(f"POST {COMPLETIONS} HTTP/1.1\nHost: g\nContent-Length: {5 * MIB}\n"),
    ),
    "a bomb": (
        415,
        "ContentEncodingNotTaken",
        lambda s: s.gateway.post(COMPLETIONS, BOMB, "Content-Encoding: gzip"),
    ),
    "no JSON": (400, "InvalidJson", lambda s: s.gateway.post(COMPLETIONS, b"{")),
    "deep JSON": (400, "InvalidJson", lambda s: s.gateway.post(COMPLETIONS, DEEP)),
    "a malformed header": (400, "HeaderMalformed", lambda s: s.sample(None, "Trace-Id: \xff")),
    "a field that is none": (
        422,
        "InvalidRequest",
        lambda s: s.gateway.post(f"/v1/runs/{s.gateway.namespace}/arith/evaluations", b'{"x": 1}'),
    ),
    "over a quota": (429, "TooManyRequests", over_its_quota),
    "a header that is too large": (
        400,
        "HttpMalformed",
        lambda s: s.head(f"GET /v1/models HTTP/1.1\nHost: g\nX-Large: {'a' * 9000}\n"),
    ),
    "no HTTP": (400, "HttpMalformed", lambda s: s.head("\x01 / HTTP/1.1\n")),
}


@pytest.mark.parametrize("name", BY_THE_GATEWAY)
def test_a_refusal_of_the_gateway_is_counted_and_tells_nothing(served: Served, name: str) -> None:
    status, reason, act = BY_THE_GATEWAY[name]
    before = served.count(reason)
    found, answer = act(served)
    assert found == status, answer
    assert served.count(reason) == before + 1, answer
    tokens = (served.viewer, served.spender, served.gateway.trainer, served.gateway.stranger)
    assert_tells_nothing(answer, *tokens, GARBAGE, served.apart)
    assert served.sample()[0] == 200


def test_reasons_that_pods_make_up_are_no_series_without_end() -> None:
    reasons = PodReasons(most=2)
    made_up = ("Forbidden", "not a word", "A" * 65, "Made", "Up", "", "Forbidden")
    labels = [reasons.label(reason) for reason in made_up]
    assert labels == ["Forbidden", "other", "other", "Made", "other", "other", "Forbidden"]


def bearer(subject: identity.Subject, audience: str = AUDIENCE, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {identity.issue(PRIVATE, subject, audience, 0)}", **headers}


# Tokens last for two minutes, so each test makes its own.
Headers = Callable[[], dict[str, str]]
MINE: Headers = partial(bearer, "gateway")
TRAIN = "/train/forward-backward"
Sent = tuple[int, str, str, str, Headers, str]
BY_A_TRAINER: dict[str, Sent] = {
    "no token": (401, "Unauthenticated", "POST", TRAIN, dict, batch()),
    "a token of nobody": (
        *(401, "Unauthenticated", "POST", TRAIN),
        lambda: {"Authorization": f"Bearer {GARBAGE}"},
        batch(),
    ),
    "a token for another model": (
        *(401, "Unauthenticated", "POST", TRAIN),
        partial(bearer, "gateway", "away/spell/trainer/uid-2"),
        batch(),
    ),
    "the gateway at the operator's": (403, "Forbidden", "POST", "/assign", MINE, "{}"),
    "a route that is none": (404, "NotFound", "GET", "/train/../etc", MINE, ""),
    "another method": (405, "MethodNotAllowed", "DELETE", "/train/state", MINE, ""),
    "another model's forward": (
        *(404, "ForwardNotFound", "POST", "/train/backward", MINE),
        json.dumps({"forward_id": "forward-9", "weights": []}),
    ),
    "another model's trace": (
        *(404, "TraceNotFound", "POST", f"/traces/{'1' * 32}/exit", MINE),
        json.dumps({"reward": 1.0}),
    ),
    "nothing to step on": (409, "NoGradients", "POST", "/train/optim-step", MINE, "STEP"),
    "a large body": (413, "BodyTooLarge", "POST", TRAIN, MINE, " " * (LIMIT_BYTES + 1)),
    "a bomb": (
        *(415, "ContentEncodingNotTaken", "POST", TRAIN),
        lambda: {**MINE(), "Content-Encoding": "gzip"},
        batch(),
    ),
    "no JSON": (422, "InvalidRequest", "POST", TRAIN, MINE, "{"),
    "deep JSON": (422, "InvalidRequest", "POST", TRAIN, MINE, '{"a":' * 10_000),
    "a field that is none": (422, "InvalidRequest", "POST", TRAIN, MINE, batch(logprobs=[1.0])),
    "a malformed key": (
        *(422, "InvalidRequest", "POST", TRAIN),
        lambda: {**MINE(), "Idempotency-Key": "none"},
        batch(),
    ),
}


def counted(of: str, reason: str) -> float:
    return REGISTRY.get_sample_value(f"espalier_{of}_refusals_total", {"reason": reason}) or 0.0


@pytest.mark.parametrize("name", BY_A_TRAINER)
async def test_a_refusal_of_a_trainer_is_counted_and_tells_nothing(trainer: Any, name: str) -> None:
    status, reason, method, path, given, body = BY_A_TRAINER[name]
    headers = given()
    sent = tiny.optim_step().model_dump_json() if body == "STEP" else body
    before = counted("trainer", reason)
    answer = await trainer.request(method, path, headers=headers, data=sent)
    told = await answer.read()
    assert (answer.status, json.loads(told)["reason"]) == (status, reason), told
    assert counted("trainer", reason) == before + 1
    assert_tells_nothing(told, *headers.get("Authorization", "").split()[1:], GARBAGE)
    good = await trainer.post(TRAIN, headers=MINE(), data=tiny.forward_backward().model_dump_json())
    assert good.status == 200


MALFORMED = {
    "no HTTP": b"\x01 / HTTP/1.1\r\n\r\n",
    "a header that is too large": b"GET /healthz HTTP/1.1\r\nX-Large: " + b"a" * 9000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_no_http_is_counted_by_a_trainer_and_told_nothing(
    trainer: Any, name: str
) -> None:
    """At the port that it serves: the parser refuses it, and no route is reached."""
    await Site(trainer.server.runner, "127.0.0.1", 0).start()
    host, port = trainer.server.runner.addresses[-1]
    before = counted("trainer", "HttpMalformed")
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(MALFORMED[name])
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.0 400 "), answer
    assert counted("trainer", "HttpMalformed") == before + 1
    assert_tells_nothing(answer)
    async with aiohttp.request("GET", f"http://{host}:{port}/healthz") as good:
        assert good.status == 200
    assert counted("trainer", "HttpMalformed") == before + 1


GATEWAY: Headers = partial(authorization, "gateway")
OPERATOR: Headers = partial(authorization, "operator")
SAMPLE = ("POST", COMPLETIONS)
BY_A_SAMPLER: dict[str, tuple[int, str, tuple[str, str], Headers]] = {
    "no token": (401, "Unauthenticated", SAMPLE, dict),
    "a token of nobody": (
        *(401, "Unauthenticated", SAMPLE),
        lambda: {"Authorization": f"Bearer {GARBAGE}"},
    ),
    "a token for another pod": (
        *(401, "Unauthenticated", SAMPLE),
        partial(authorization, "gateway", f"{SETTINGS.audience}-2"),
    ),
    "the gateway at the operator's": (403, "Forbidden", ("POST", guard.SERVE), GATEWAY),
    "a route of vLLM's": (404, "NoSuchRoute", ("POST", "/v1/load_lora_adapter"), OPERATOR),
    "another method": (404, "NoSuchRoute", ("DELETE", COMPLETIONS), OPERATOR),
    "a body without a length": (
        *(411, "LengthRequired", SAMPLE),
        lambda: {**GATEWAY(), "Transfer-Encoding": "chunked"},
    ),
    "a large body": (
        413,
        "BodyTooLarge",
        SAMPLE,
        lambda: {**GATEWAY(), "Content-Length": str(9 * MIB)},
    ),
    "a bomb": (
        *(415, "ContentEncodingNotTaken", SAMPLE),
        lambda: {**GATEWAY(), "Content-Encoding": "gzip", "Content-Length": "1"},
    ),
}


@pytest.mark.parametrize("name", BY_A_SAMPLER)
def test_a_refusal_of_a_sampler_is_counted_and_tells_nothing(name: str) -> None:
    status, reason, (method, path), given = BY_A_SAMPLER[name]
    headers = given()
    before = counted("sampler", reason)
    chunked = iter([b"{}"]) if "Transfer-Encoding" in headers else None
    answer = CLIENT.request(method, path, headers=headers, content=chunked)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert counted("sampler", reason) == before + 1
    assert_tells_nothing(answer.content, *headers.get("Authorization", "").split()[1:], GARBAGE)
    assert CLIENT.post(COMPLETIONS, headers=GATEWAY(), json={}).text == "reached"
