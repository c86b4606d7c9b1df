"""Completion routes: errors, retries and disconnects. What vLLM answers is in test_vllm.py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from dev.ports import free_port
from tests.gateway.conftest import KEYS, Behaviour, Gateway, Upstream
from tests.gateway.world import LOADING, digest, waiting

from espalier import identity
from espalier.core.names import audience
from espalier.gateway.routes import asked_target, completions
from espalier.gateway.world.world import NamespacedName

A, B = digest("a1"), digest("b2")
Start = Callable[[Behaviour], Awaitable[Upstream]]
ASK = {"model": "arith", "prompt": "1+1=", "max_tokens": 1}


async def answer(request: web.Request) -> web.Response:
    return web.json_response({"model": "arith@a1a1a1a1a1a1", "choices": [{"text": "2"}]})


async def hang_up(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def hang(request: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


def serve(gateway: Gateway, *ports: int) -> NamespacedName:
    """A model whose head serves A on loopback pods of these ports."""
    model = gateway.world.model("arith")
    gateway.world.head(model, A, step=1)
    for number, port in enumerate(ports):
        gateway.world.pod(model, f"arith-rollout-{number}", ip="127.0.0.1", port=port)
    return model


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
async def test_a_request_reaches_the_rollout_under_the_adapters_name_with_our_token(
    gateway: Gateway, upstream: Start, route: str
) -> None:
    pod = await upstream(answer)
    model = serve(gateway, pod.port)
    reply = await gateway.post(route, ASK)
    assert reply.status == 200
    assert (await reply.json())["model"] == "arith"
    assert pod.requests[0].path == route
    assert pod.bodies == [ASK | {"model": "arith@a1a1a1a1a1a1"}]
    name = audience(model.namespace, model.name, "rollout", "uid-arith-rollout-0")
    caller = identity.verify(KEYS, pod.requests[0].headers["Authorization"], name)
    assert caller.subject == "gateway"


async def test_a_rollout_can_tell_callers_apart_and_not_who_they_are(
    gateway: Gateway, upstream: Start
) -> None:
    pod = await upstream(answer)
    serve(gateway, pod.port)
    for token in (gateway.users.trainer, gateway.users.reader, gateway.users.trainer):
        # No caller says who it is, nor when it is served.
        said = {"Espalier-Caller": "somebody", "X-Vllm-Priority": "-1"}
        reply = await gateway.post("/v1/completions", ASK, token, **said)
        assert reply.status == 200
    assert all("X-Vllm-Priority" not in request.headers for request in pod.requests)
    first, second, again = (request.headers["Espalier-Caller"] for request in pod.requests)
    assert first == again != second
    assert len(first) == 24
    assert set(first) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    ("asked", "sampled"),
    [("arith", "arith-000001"), ("arith@arith-000002", "arith-000002"), ("arith@base", "base")],
)
async def test_an_answer_names_the_checkpoint_that_sampled_it(
    gateway: Gateway, upstream: Start, asked: str, sampled: str
) -> None:
    pod = await upstream(answer)
    model = gateway.world.model("arith")
    gateway.world.head(model, A, step=1, checkpoint="arith-000001")
    gateway.world.checkpoint(model, "arith-000002", B, step=2)
    gateway.world.pod(model, "arith-rollout-0", ip="127.0.0.1", port=pod.port)
    reply = await gateway.post("/v1/completions", ASK | {"model": asked})
    assert (reply.status, reply.headers["Espalier-Checkpoint"]) == (200, sampled)


async def test_requests_take_turns_over_the_ready_pods(gateway: Gateway, upstream: Start) -> None:
    pods = [await upstream(answer) for _ in range(3)]
    model = serve(gateway, *(pod.port for pod in pods[:2]))
    gateway.world.pod(model, "loading", ip="127.0.0.1", port=pods[2].port, **LOADING)
    for _ in range(6):
        assert (await gateway.post("/v1/completions", ASK)).status == 200
    assert [len(pod.requests) for pod in pods] == [3, 3, 0]


async def test_requests_of_one_key_go_to_one_rollout_and_when_it_is_gone_to_the_next(
    gateway: Gateway, upstream: Start
) -> None:
    pods = [await upstream(answer) for _ in range(3)]
    model = serve(gateway, *(pod.port for pod in pods))

    async def taken_by(key: str) -> int:
        before = [len(pod.requests) for pod in pods]
        reply = await gateway.post("/v1/completions", ASK | {"prompt_cache_key": key})
        assert reply.status == 200
        return next(n for n, pod in enumerate(pods) if len(pod.requests) > before[n])

    keys = [f"group-{n}" for n in range(12)]
    first = {key: await taken_by(key) for key in keys}
    assert set(first.values()) == {0, 1, 2}
    assert {key: await taken_by(key) for key in keys} == first
    # A rollout gets no field that it does not know.
    assert all("prompt_cache_key" not in body for pod in pods for body in pod.bodies)
    gateway.world.drop("Pod", "arith-rollout-1")
    without = {key: await taken_by(key) for key in keys}
    assert {key: n for key, n in without.items() if first[key] != 1} == {
        key: n for key, n in first.items() if n != 1
    }
    gateway.world.pod(model, "arith-rollout-1", ip="127.0.0.1", port=pods[1].port)
    assert {key: await taken_by(key) for key in keys} == first


@pytest.mark.parametrize("key", ["", 7, "x" * 257])
async def test_a_key_that_is_none_is_refused_by_name(gateway: Gateway, key: object) -> None:
    serve(gateway)
    reply = await gateway.post("/v1/completions", ASK | {"prompt_cache_key": key})
    assert reply.status == 400
    assert "prompt_cache_key" in (await reply.json())["error"]["message"]


async def test_an_unknown_model_is_a_404_that_names_only_what_the_caller_may_see(
    gateway: Gateway,
) -> None:
    serve(gateway)
    reply = await gateway.post("/v1/completions", ASK | {"model": "arit"})
    error = (await reply.json())["error"]
    assert reply.status == 404
    assert error["code"] == "ModelNotFound"
    assert error["type"] == "not_found_error"
    assert "Did you mean: arith" in error["message"]
    reply = await gateway.post("/v1/completions", ASK | {"model": "arit"}, gateway.users.stranger)
    assert reply.status == 403
    assert "arith" not in (await reply.json())["error"]["message"]


@pytest.mark.parametrize(
    ("token", "status", "code"), [("", 401, "NoToken"), ("stranger", 403, "Forbidden")]
)
async def test_a_caller_without_the_right_is_refused(
    gateway: Gateway, token: str, status: int, code: str
) -> None:
    serve(gateway)
    text = gateway.users.stranger if token else ""
    reply = await gateway.post("/v1/completions", ASK, text)
    assert reply.status == status
    assert (await reply.json())["error"]["code"] == code


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "InvalidJson"),
        (b"[]", "InvalidJson"),
        (b"{}", "ModelMissing"),
        (b'{"model": 7}', "ModelMissing"),
    ],
)
async def test_a_bad_body_is_a_400(gateway: Gateway, body: bytes, code: str) -> None:
    serve(gateway)
    reply = await gateway.request("POST", "/v1/completions", data=body)
    assert reply.status == 400
    assert (await reply.json())["error"]["code"] == code


async def test_rollouts_that_are_not_ready_are_a_503_with_the_kubernetes_reason(
    gateway: Gateway,
) -> None:
    model = serve(gateway)
    gateway.world.pod(
        model, "arith-rollout-0", containerStatuses=[waiting("ImagePullBackOff", "no such image")]
    )
    reply = await gateway.post("/v1/completions", ASK)
    error = (await reply.json())["error"]
    assert reply.status == 503
    assert reply.headers["Retry-After"]
    assert error["code"] == "ImagePullBackOff"
    assert "no such image" in error["message"]


async def test_a_checkpoint_whose_object_comes_late_is_waited_for(
    gateway: Gateway, upstream: Start
) -> None:
    pod = await upstream(answer)
    model = serve(gateway, pod.port)
    asked = ASK | {"model": "arith@arith-000002"}
    pending = asyncio.create_task(gateway.post("/v1/completions", asked))
    # The list of models passes through the same server later, so the first request waits by then.
    await gateway.get("/v1/models")
    assert not pending.done()
    gateway.world.checkpoint(model, "arith-000002", B, step=2)
    assert (await pending).status == 200
    assert pod.bodies[0]["model"] == "arith@b2b2b2b2b2b2"


async def test_a_checkpoint_that_never_comes_is_a_404(
    gateway: Gateway, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked_target, "CHECKPOINT_WAIT_SECONDS", 0.05)
    model = serve(gateway, (await upstream(answer)).port)
    gateway.world.checkpoint(model, "arith-000002", B, step=2)
    for ref in ("arith-000003", "nonsense"):
        reply = await gateway.post("/v1/completions", ASK | {"model": f"arith@{ref}"})
        assert reply.status == 404
        assert f"has no checkpoint '{ref}'" in (await reply.json())["error"]["message"]


async def test_errors_of_the_rollout_pass_unchanged(gateway: Gateway, upstream: Start) -> None:
    body = {"error": {"message": "max_tokens must be at least 1, got 0", "code": 400}}

    async def refuse(request: web.Request) -> web.Response:
        return web.json_response(body, status=400)

    serve(gateway, (await upstream(refuse)).port)
    reply = await gateway.post("/v1/completions", ASK)
    assert (reply.status, await reply.json()) == (400, body)


@pytest.mark.parametrize("lost", ["refused", "aborted"])
async def test_a_lost_pod_is_made_up_for_by_another(
    gateway: Gateway, upstream: Start, lost: str
) -> None:
    good = await upstream(answer)
    bad_port = free_port() if lost == "refused" else (await upstream(hang_up)).port
    serve(gateway, bad_port, good.port)
    for _ in range(4):
        assert (await gateway.post("/v1/completions", ASK)).status == 200
    assert len(good.requests) == 4


async def give_up(request: web.Request) -> web.StreamResponse:
    """As vLLM answers that was told to end: what it has sampled until then, or nothing."""
    sampled = {"index": 0, "text": "", "token_ids": [], "finish_reason": "abort"}
    body = {"model": "arith@a1a1a1a1a1a1", "choices": [sampled]}
    if not (await request.json()).get("stream"):
        return web.json_response(body, dumps=compact)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"data: " + compact(body).encode() + b"\n\ndata: [DONE]\n\n")
    return response


def compact(body: Any) -> str:
    return json.dumps(body, separators=(",", ":"))


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_rollout_gave_up_is_no_answer_and_sampled_again_by_another(
    gateway: Gateway, upstream: Start, stream: bool
) -> None:
    good = await upstream(answer)
    ending = await upstream(give_up)
    serve(gateway, ending.port, good.port)
    for _ in range(4):
        reply = await gateway.post("/v1/completions", ASK | {"stream": stream})
        assert reply.status == 200
        assert "abort" not in await reply.text()
    assert len(good.requests) == 4
    assert ending.requests


async def test_when_every_rollout_gives_up_the_answer_is_503(
    gateway: Gateway, upstream: Start
) -> None:
    serve(gateway, (await upstream(give_up)).port)
    reply = await gateway.post("/v1/completions", ASK)
    assert reply.status == 503
    assert "gave up" in (await reply.json())["error"]["message"]


async def test_when_no_pod_can_be_reached_the_answer_is_503(gateway: Gateway) -> None:
    serve(gateway, free_port(), free_port())
    reply = await gateway.post("/v1/completions", ASK)
    assert reply.status == 503
    assert (await reply.json())["error"]["code"] == "RolloutUnreachable"


async def test_a_pod_that_does_not_answer_in_time_is_a_504(
    gateway: Gateway, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completions, "_TIMEOUT", completions.aiohttp.ClientTimeout(sock_read=0.05))
    pod = await upstream(hang)
    serve(gateway, pod.port)
    reply = await gateway.post("/v1/completions", ASK)
    assert reply.status == 504
    # None if the machine was busy when it came: it is never sent again.
    assert len(pod.requests) <= 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_frees_the_rollout(
    gateway: Gateway, upstream: Start, stream: bool
) -> None:
    arrived = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        arrived.set()
        if stream:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b"data: {}\n\n")
        return await hang(request)

    pod = await upstream(slow)
    serve(gateway, pod.port)
    request = asyncio.create_task(gateway.post("/v1/completions", ASK | {"stream": stream}))
    await arrived.wait()
    if stream:
        reply = await request
        assert await reply.content.readuntil(b"\n\n") == b"data: {}\n\n"
        reply.close()
    else:
        request.cancel()
    async with asyncio.timeout(60):
        await pod.disconnected.wait()
    assert len(pod.requests) == 1


async def test_a_stream_that_breaks_ends_with_an_error_event(
    gateway: Gateway, upstream: Start
) -> None:
    read = asyncio.Event()

    async def break_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"model":"arith@a1a1a1a1a1a1","choices":[]}\n\n')
        await read.wait()
        return await hang_up(request)

    pod = await upstream(break_off)
    serve(gateway, pod.port)
    reply = await gateway.post("/v1/completions", ASK | {"stream": True})
    event = await reply.content.readuntil(b"\n\n")
    assert event == b'data: {"model":"arith","choices":[]}\n\n'
    read.set()
    text = await reply.text()
    assert '"code":"StreamBroken"' in text
    assert text.endswith("data: [DONE]\n\n")
    assert len(pod.requests) == 1


async def test_every_answer_carries_a_request_id(gateway: Gateway) -> None:
    reply = await gateway.request("GET", "/v1/models", headers={"X-Request-Id": "mine-1"})
    assert reply.headers["X-Request-Id"] == "mine-1"
    reply = await gateway.request("GET", "/v1/models", headers={"X-Request-Id": "no spaces"})
    assert len(reply.headers["X-Request-Id"]) == 32


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405), ("GET", "/healthz", 200)],
)
async def test_other_routes(gateway: Gateway, method: str, path: str, status: int) -> None:
    reply = await gateway.request(method, path)
    assert reply.status == status
    if status != 200:
        error: dict[str, Any] = (await reply.json())["error"]
        assert path in error["message"]


async def test_an_image_is_refused_before_it_reaches_a_rollout(
    gateway: Gateway, upstream: Start
) -> None:
    pod = await upstream(answer)
    serve(gateway, pod.port)
    content = [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]
    body = {"model": "arith", "messages": [{"role": "user", "content": content}]}
    reply = await gateway.post("/v1/chat/completions", body)
    assert reply.status == 400
    assert "messages[0].content[0] is of type image_url" in (await reply.json())["error"]["message"]
    assert not pod.requests


TRACE = {"Trace-Id": "0123456789abcdef0123456789abcdef"}


async def test_a_rollouts_completion_is_held_until_a_starting_server_answers(
    gateway: Gateway, upstream: Start
) -> None:
    pod = await upstream(answer)
    model = serve(gateway)
    gateway.world.pod(model, "arith-rollout-0", **LOADING)
    held = asyncio.create_task(gateway.post("/v1/completions", ASK, **TRACE))
    # What belongs to no rollout is told at once.
    reply = await gateway.post("/v1/completions", ASK)
    assert (reply.status, reply.headers["Retry-After"]) == (503, "2")
    assert not held.done()
    gateway.world.pod(model, "arith-rollout-0", ip="127.0.0.1", port=pod.port)
    assert (await held).status == 200


@pytest.mark.parametrize("fault", [True, False])
async def test_a_held_completion_ends_with_what_holds_it(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, fault: bool
) -> None:
    model = serve(gateway)
    if fault:
        # Would never end in the test's time.
        status = {"containerStatuses": [waiting("ImagePullBackOff", "no such image")]}
        gateway.world.pod(model, "arith-rollout-0", **status)
    else:
        monkeypatch.setattr(asked_target, "HELD_SECONDS", 0.05)
        gateway.world.pod(model, "arith-rollout-0", **LOADING)
    reply = await gateway.post("/v1/completions", ASK, **TRACE)
    assert reply.status == 503
    wanted = "ImagePullBackOff" if fault else "ContainersNotReady"
    assert (await reply.json())["error"]["code"] == wanted
