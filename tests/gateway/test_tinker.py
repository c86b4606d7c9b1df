"""Futures of Tinker's API: what a client is told of pods that misbehave, or that it waits for."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.gateway.conftest import Behaviour, Gateway
from tests.gateway.test_completions import ASK, A, Start, hang, hang_up, serve
from tests.gateway.test_training import training
from tests.gateway.world import condition

from espalier import identity
from espalier.core.head.head_request import pin
from espalier.gateway.access import answer_writer
from espalier.gateway.access.pod_tokens import TokenIssuer
from espalier.gateway.tinker import results, samples
from espalier.gateway.tinker.downloads import AUDIENCE
from espalier.gateway.tinker.futures import Future
from espalier.gateway.tinker.names import Sampler, Session
from espalier.gateway.world.world import NamespacedName
from espalier.kube.cluster import ClusterError
from espalier.tinker.commands import ADAPTER_FILES, FILES
from espalier.tinker.messages_pb2 import SampleResponse

PROMPT = {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]}
CHOICE = {
    "index": 0,
    "token_ids": [3],
    "logprobs": {"token_logprobs": [-1.0]},
    "finish_reason": "length",
}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (results, "HOLD_SECONDS"),
        (results, "LOOK_AGAIN_SECONDS"),
        (samples, "CHECKPOINT_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.3)
    monkeypatch.setattr(samples, "AGAIN_SECONDS", 0.01)


def answers(*replies: Any) -> Behaviour:
    """Each request gets the next of these, the last one again and again."""
    left = list(replies)

    async def behave(request: web.Request) -> web.StreamResponse:
        reply = left.pop(0) if len(left) > 1 else left[0]
        if callable(reply):
            found: web.StreamResponse = await reply(request)
            return found
        status, body = reply
        return web.json_response(body, status=status)

    return behave


def said(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}


async def sampled(
    gateway: Gateway, model: NamespacedName, number: int = 0, **params: Any
) -> tuple[int, Any]:
    """Status and body of the first poll of a sample."""
    reply = await sample(gateway, model, number, **params)
    assert reply.status == 200, await reply.text()
    return await retrieved(gateway, (await reply.json())["request_id"])


async def sample(
    gateway: Gateway, model: NamespacedName, number: int = 0, **params: Any
) -> aiohttp.ClientResponse:
    sampler = Sampler(Session(model.namespace, "0" * 16), 0, model, "base")
    asked = {"sampling_session_id": str(sampler), "seq_id": number, "prompt": PROMPT}
    params = {"max_tokens": 1, **params}
    return await gateway.post("/api/v1/asample", asked | {"sampling_params": params})


async def retrieved(gateway: Gateway, future: str) -> tuple[int, Any]:
    reply = await gateway.post("/api/v1/retrieve_future", {"request_id": future})
    if reply.content_type == "application/x-protobuf":
        return reply.status, await reply.read()
    return reply.status, await reply.json()


@pytest.mark.parametrize(
    ("replies", "category", "says"),
    [
        ([(400, said("beyond the context"))], "user", "beyond the context"),
        ([(404, said("no such model"))], "user", "no such model"),
        ([(500, said("the engine is dead"))], "server", "the engine is dead"),
        ([(200, {"choices": []})], "server", "answers a completion wrongly"),
        ([(200, {"choices": [CHOICE | {"token_ids": [2**40]}]})], "server", "wrongly"),
    ],
)
async def test_a_sample_that_fails_is_told_with_whose_fault_it_is(
    gateway: Gateway, upstream: Start, replies: list[Any], category: str, says: str
) -> None:
    pod = await upstream(answers(*replies))
    status, told = await sampled(gateway, serve(gateway, pod.port))
    assert (status, told["category"]) == (200, category)
    assert says in told["error"]


async def test_a_sample_and_a_completion_of_one_caller_wait_in_one_line(
    gateway: Gateway, upstream: Start
) -> None:
    pod = await upstream(answers((200, {"model": "arith@base", "choices": [CHOICE]})))
    model = serve(gateway, pod.port)
    assert (await sampled(gateway, model))[0] == 200
    assert (await gateway.post("/v1/completions", ASK)).status == 200
    first, second = (request.headers["Espalier-Caller"] for request in pod.requests)
    assert first == second != ""


async def test_a_sample_of_no_tokens_has_none(gateway: Gateway, upstream: Start) -> None:
    """Its client wants the prompt's log-probs, and vLLM draws one token at least."""
    pod = await upstream(answers((200, {"choices": [CHOICE]})))
    status, body = await sampled(gateway, serve(gateway, pod.port), max_tokens=0)
    assert status == 200
    (sequence,) = SampleResponse.FromString(body).sequences
    assert (sequence.tokens, sequence.logprobs) == (b"", b"")


async def test_a_value_out_of_range_is_refused_without_a_list_of_other_fields(
    gateway: Gateway,
) -> None:
    model = gateway.world.model("arith")
    for params, said in (
        ({"max_tokens": -1}, "max_tokens: Input should be greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature: Input should be a valid number"),
    ):
        reply = await sample(gateway, model, **params)
        assert reply.status == 422
        told = await reply.json()
        assert said in told["detail"]
        assert "The fields are" not in told["detail"]


async def test_a_lost_connection_is_not_the_clients_concern(
    gateway: Gateway, upstream: Start
) -> None:
    pod = await upstream(answers(hang_up, (200, {"choices": [CHOICE]})))
    status, body = await sampled(gateway, serve(gateway, pod.port))
    assert (status, len(pod.requests)) == (200, 2)
    assert isinstance(body, bytes)


async def test_what_a_rollout_gave_up_is_no_sample(gateway: Gateway, upstream: Start) -> None:
    given_up = CHOICE | {"finish_reason": "abort", "token_ids": []}
    pod = await upstream(answers((200, {"choices": [given_up]}), (200, {"choices": [CHOICE]})))
    status, body = await sampled(gateway, serve(gateway, pod.port))
    assert (status, len(pod.requests)) == (200, 2)
    (sequence,) = SampleResponse.FromString(body).sequences
    assert sequence.tokens


async def test_a_sample_goes_on_between_two_polls_and_ends_when_nobody_polls(
    gateway: Gateway, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "IDLE_SECONDS", 0.6)
    pod = await upstream(hang)
    model = serve(gateway, pod.port)
    for _ in range(2):
        status, told = await sampled(gateway, model)
        assert (status, told["type"], told["queue_state"]) == (408, "try_again", "active")
    assert len(pod.requests) == 1
    await asyncio.wait_for(pod.disconnected.wait(), 60)


async def test_a_poll_is_held_and_then_told_the_reason_of_kubernetes(gateway: Gateway) -> None:
    model = gateway.world.model("arith")
    unplaced = condition("PodScheduled", "False", "Unschedulable", "0/6 nodes are available")
    gateway.world.pod(model, "arith-rollout-0", phase="Pending", conditions=[unplaced])
    began = asyncio.get_running_loop().time()
    status, told = await sampled(gateway, model)
    assert asyncio.get_running_loop().time() - began >= 0.2
    assert (status, told["queue_state"]) == (408, "paused_capacity")
    assert "0/6 nodes" in told["queue_state_reason"]


async def test_a_model_that_is_scaled_to_nothing_is_not_waited_for(gateway: Gateway) -> None:
    status, told = await sampled(gateway, gateway.world.model("arith", replicas=0))
    assert (status, told["category"]) == (200, "user")
    assert "Set spec.rollout.replicas to 1 or more" in told["error"]


@pytest.mark.parametrize(
    "future",
    [
        lambda space: Future("train", f"{space}.gone", 1),
        lambda space: Future("create", f"{space}.gone"),
        lambda space: Future("save", f"{space}.gone", 1, {"type": "save_weights"}),
    ],
)
async def test_what_was_asked_of_a_deleted_model_fails_at_once(
    gateway: Gateway, future: Callable[[str], Future]
) -> None:
    text = str(future(gateway.users.namespace))
    status, told = await retrieved(gateway, text)
    assert (status, told["category"]) == (200, "user")
    assert "was deleted" in told["error"]


@pytest.mark.parametrize(
    "details",
    [
        {},
        {"prompt": {"chunks": []}, "sampling_params": {}},
        {"prompt": PROMPT, "sampling_params": {}, "num_samples": 10**6},
    ],
)
async def test_a_future_that_the_client_made_up_is_unknown(
    gateway: Gateway, details: dict[str, Any]
) -> None:
    model = serve(gateway)
    sampler = Sampler(Session(model.namespace, "0" * 16), 0, model, "base")
    status, told = await retrieved(gateway, str(Future("sample", str(sampler), 1, details)))
    assert (status, told["reason"]) == (404, "NotFound")


async def test_an_api_server_that_is_away_is_a_429_from_which_the_client_backs_off(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise ClusterError(0, "Unreachable", "connection refused")

    monkeypatch.setattr(gateway.context.cluster, "review_access", away)
    future = str(Future("create", f"{gateway.users.namespace}.other"))
    reply = await gateway.post("/api/v1/retrieve_future", {"request_id": future})
    assert (reply.status, reply.headers["Retry-After"]) == (429, "2")
    assert json.loads(await reply.text())["reason"] == "ReviewFailed"


@pytest.mark.parametrize("path", ["/api/v1/audit", "/tinker/api/v1/billing/usage"])
async def test_what_is_not_offered_is_refused_by_name(gateway: Gateway, path: str) -> None:
    reply = await gateway.get(path)
    assert reply.status == 404
    assert "is not served here" in (await reply.json())["detail"]
    assert (await gateway.get(path, token="")).status == 401


async def test_what_only_a_new_model_takes_is_refused_of_one_that_there_is(
    gateway: Gateway, upstream: Start
) -> None:
    trainer = await upstream(answers((202, {})))
    model = training(gateway, trainer.port)
    session = Session(model.namespace, "0" * 16)
    made = {"session_id": str(session), "model_seq_id": 0, "base_model": model.name}
    made |= {"lora_config": {"rank": 16}, "user_metadata": {"team": "a"}}
    loaded = {"model_id": f"{session}.{model.name}:train:0", "seq_id": 1, "optimizer": True}
    loaded |= {"path": f"tinker://{model.namespace}.{model.name}/weights/a", "base_model": "other"}
    for route, asked, named in (
        ("create_model", made, "user_metadata"),
        ("load_weights", loaded, "base_model"),
    ):
        reply = await gateway.post(f"/api/v1/{route}", asked)
        assert reply.status == 200, await reply.text()
        status, told = await retrieved(gateway, (await reply.json())["request_id"])
        assert (status, told["category"]) == (200, "user")
        assert named in told["error"]


@pytest.mark.parametrize("fork", [False, True])
async def test_weights_are_loaded_in_place_from_models_whose_checkpoints_the_trainer_sees(
    gateway: Gateway, upstream: Start, *, fork: bool
) -> None:
    trainer = await upstream(answers((202, {})))
    model = training(gateway, trainer.port)
    other = gateway.world.model("other")
    gateway.world.checkpoint(other, "other-000001", A)
    if fork:
        spec = {
            "source": {"checkpointRef": {"name": "other-000007"}},
            "storage": {"persistentVolumeClaim": {"claimName": "weights"}},
        }
        read = {"reads": [{"checkpoint": "other-000007", "model": "other"}]}
        gateway.world.put("TrainableModel", "arith", spec=spec, status=read)
    session = Session(model.namespace, "0" * 16)
    path = f"tinker://{model.namespace}.other/weights/other-000001"
    loaded = {"model_id": f"{session}.{model.name}:train:0", "seq_id": 1, "optimizer": True}
    reply = await gateway.post("/api/v1/load_weights", loaded | {"path": path})
    assert reply.status == 200, await reply.text()
    sent = [request.path for request in trainer.requests]
    assert any("load-weights" in path for path in sent) is fork
    if not fork:
        status, told = await retrieved(gateway, (await reply.json())["request_id"])
        assert (status, told["category"]) == (200, "user")
        assert "create_training_client_from_state" in told["error"]


@pytest.mark.parametrize(
    ("route", "number"),
    [("create_sampling_session", "sampling_session_seq_id"), ("create_model", "model_seq_id")],
)
async def test_bases_are_named_to_those_who_may_fork_or_sample_in_their_namespace(
    gateway: Gateway, route: str, number: str
) -> None:
    model = gateway.world.model("arith")
    asked = {"session_id": str(Session(model.namespace, "0" * 16)), number: 0, "base_model": "none"}
    for token, named in ((gateway.users.reader, True), (gateway.users.stranger, False)):
        reply = await gateway.post(f"/api/v1/{route}", asked, token)
        assert (reply.status, (await reply.json())["reason"]) == (404, "BaseNotFound")
        assert ("registry.example/model:1" in await reply.text()) == named


async def test_only_models_that_their_caller_could_train_are_named_for_that(
    gateway: Gateway,
) -> None:
    for name, driver in (("driven", "Client"), ("declared", "Runner"), ("idle", "")):
        model = gateway.world.model(name)
        if driver:
            gateway.world.run(model, name, driver=driver)
    asked = {"session_id": str(Session(model.namespace, "0" * 16)), "model_seq_id": 0}
    for token, named in ((gateway.users.trainer, "driven"), (gateway.users.reader, "none")):
        reply = await gateway.post("/api/v1/create_model", asked | {"base_model": "none"}, token)
        assert f"to be trained by name: {named}." in (await reply.json())["detail"]


def deleted_while_asked(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, gone: NamespacedName
) -> None:
    """The API server reviews a right, and before its answer comes the model is deleted."""
    review = gateway.context.auth.allowed

    async def slow(*asked: Any) -> bool:
        may = await review(*asked)
        gateway.world.drop("TrainableModel", gone.name)
        return may

    monkeypatch.setattr(gateway.context.auth, "allowed", slow)


async def test_a_base_is_sampled_from_a_model_that_is_left_when_others_are_deleted_meanwhile(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = gateway.world.model("a"), gateway.world.model("b")
    deleted_while_asked(gateway, monkeypatch, second)
    asked = {
        "session_id": str(Session(first.namespace, "0" * 16)),
        "sampling_session_seq_id": 0,
        "base_model": "registry.example/model:1",
    }
    reply = await gateway.post("/api/v1/create_sampling_session", asked)
    assert reply.status == 200, await reply.text()
    sampler = Sampler.read((await reply.json())["sampling_session_id"])
    assert sampler is not None
    assert sampler.model == first


async def test_a_model_that_is_deleted_while_its_caller_is_looked_at_is_not_found(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gateway.world.model("arith")
    deleted_while_asked(gateway, monkeypatch, model)
    reply = await gateway.get("/v2/models/arith/checkpoints")
    assert (reply.status, (await reply.json())["reason"]) == (404, "ModelNotFound")
    again = gateway.world.model("arith")
    assert again == model
    listed = await gateway.get("/v2/models")
    assert (listed.status, (await listed.json())["items"]) == (200, [])


@pytest.mark.parametrize("held", ["HeadPinned", "RunSuspended"])
async def test_a_client_waits_while_training_is_held_and_is_told_why(
    gateway: Gateway, upstream: Start, held: str
) -> None:
    trainer = await upstream(answers((202, {})))
    model = training(gateway, trainer.port)
    of_model = {"model_id": f"{Session(model.namespace, '0' * 16)}.{model.name}:train:0"}
    step = of_model | {"seq_id": 1, "adam_params": {"learning_rate": 0.1}, "type": "optim_step"}
    reply = await gateway.post("/api/v1/optim_step", step)
    assert reply.status == 200
    future = (await reply.json())["request_id"]
    if held == "HeadPinned":
        gateway.world.head(model, "", term=4, agreed=pin("arith-000001", "Pause", 2))
    else:
        gateway.world.run(model, "first", suspend=True)
    gateway.world.drop("Pod", "arith-trainer-0", model.namespace)
    reply = await gateway.post("/api/v1/optim_step", step | {"seq_id": 2})
    body = await reply.json()
    assert (reply.status, body["reason"]) == (402, held)
    assert "this is no bill" in body["detail"]
    assert "Set " in body["detail"]
    status, told = await retrieved(gateway, future)
    assert (status, told["queue_state"]) == (408, "paused_capacity")
    assert told["queue_state_reason"].startswith(f"{held}: ")


def link_to(gateway: Gateway, model: NamespacedName, file: str, **more: Any) -> str:
    """The path of a link to the configuration of an adapter, under the name of a file."""
    claims = {"aud": AUDIENCE, "exp": time.time() + 60, "digest": "sha256:a1"}
    claims |= {"namespace": model.namespace, "model": model.name, "file": ADAPTER_FILES[0]}
    return f"/api/v1/files/{gateway.context.tokens.sign(claims | more)}/{file}"


async def test_a_link_to_weights_is_good_for_its_file_and_for_an_hour(
    gateway: Gateway, upstream: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async def trainer(request: web.Request) -> web.Response:
        if request.path.startswith(FILES):
            return web.Response(body=request.path.encode())
        return web.json_response({})

    link = partial(link_to, gateway, training(gateway, (await upstream(trainer)).port))
    config, weights = ADAPTER_FILES
    caplog.set_level(logging.INFO, "espalier.gateway.app")
    reply = await gateway.get(link(config), token="")
    assert (reply.status, await reply.text()) == (200, f"{FILES}/sha256:a1/{config}")
    forged = TokenIssuer()
    forged.use(identity.generate_private_key())
    for path in (
        link(weights),
        link(config, exp=time.time() - 1),
        link(config, aud="espalier-gateway"),
        f"/api/v1/files/{forged.sign({'aud': AUDIENCE, 'exp': time.time() + 60})}/{config}",
    ):
        reply = await gateway.get(path, token="")
        assert (reply.status, (await reply.json())["reason"]) == (401, "LinkExpired")
    # Whoever reads the log has no link, nor one that was asked for in another way.
    good = link(config)
    strange = [good.replace("/files/", part) for part in ("/files//", "/Files/")]
    for method, path in (
        ("POST", good),
        ("GET", f"{good}/"),
        ("GET", f"/proxy{good}"),
        *(("GET", path) for path in strange),
    ):
        assert (await gateway.request(method, path, token="")).status >= 400
    paths = [vars(line)["path"] for line in caplog.records if line.message == "request"]
    assert len(paths) == 10
    assert all(f"/{{ticket}}/{config}" in path for path in paths if weights not in path)
    assert not any("eyJ" in path for path in paths)


async def test_a_file_that_its_trainer_breaks_off_does_not_end_in_a_refusal(
    gateway: Gateway, upstream: Start
) -> None:
    async def trainer(request: web.Request) -> web.StreamResponse:
        if not request.path.startswith(FILES):
            return web.json_response({})
        response = web.StreamResponse()
        response.content_length = 200
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.close()
        return response

    model = training(gateway, (await upstream(trainer)).port)
    with pytest.raises(aiohttp.ClientError):
        reply = await gateway.get(link_to(gateway, model, ADAPTER_FILES[0]), token="")
        # The head of a second answer has more bytes than are left of the file.
        await reply.read()


async def test_a_client_that_does_not_read_its_file_lets_its_trainer_go(
    gateway: Gateway, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_writer, "WRITE_SECONDS", 0.2)
    let_go = asyncio.Event()

    async def trainer(request: web.Request) -> web.StreamResponse:
        if not request.path.startswith(FILES):
            return web.json_response({})
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(2**20))
        finally:
            let_go.set()

    path = link_to(gateway, training(gateway, (await upstream(trainer)).port), ADAPTER_FILES[0])
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port, limit=1024)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: g\r\n\r\n".encode())
    await asyncio.wait_for(let_go.wait(), 30)
    writer.transport.abort()
