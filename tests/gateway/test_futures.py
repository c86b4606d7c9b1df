"""Futures of Tinker's API that a caller wrote by hand.

What one asks for takes the rights to it, and what it makes the gateway hold is counted.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import zlib
from base64 import urlsafe_b64encode

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from dev.apiserver import ApiServer
from pydantic_core import to_json
from tests.api.manifests import CHECKPOINT, DIGEST, edited, named
from tests.gateway.conftest import Gateway
from tests.gateway.process import apply
from tests.gateway.test_completions import Start, hang, serve
from tests.gateway.test_tinker import CHOICE, answers
from tests.gateway.test_training import training

from espalier.api.meta import API_VERSION
from espalier.gateway.access.byte_budget import ByteBudget, ByteBudgets
from espalier.gateway.access.quotas import Limits
from espalier.gateway.app import SERVER, make_app
from espalier.gateway.tinker import kept_results, results, samples
from espalier.gateway.tinker.futures import Future
from espalier.gateway.tinker.names import Sampler, Session, TinkerModel
from espalier.gateway.world.world import NamespacedName

FREED = "2026-01-01T00:00:00Z"
RETRIEVE = "/api/v1/retrieve_future"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOLD_SECONDS", "LOOK_AGAIN_SECONDS"):
        monkeypatch.setattr(results, name, 0.3)


def sample_of(model: NamespacedName, tokens: int, number: int = 1, ref: str = "base") -> str:
    """The future of a sample of so many tokens, in which few bytes stand for many."""
    sampler = Sampler(Session(model.namespace, "0" * 16), 0, model, ref)
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [1000] * tokens}]}
    details = to_json({"prompt": prompt, "sampling_params": {"max_tokens": 1}})
    packed = urlsafe_b64encode(zlib.compress(details)).decode()
    return f"sample/{sampler}/{number}/{packed}"


def freed(apiserver: ApiServer, gateway: Gateway) -> NamespacedName:
    """A model whose trainer was freed for want of calls; its run is in the API server too."""
    model = gateway.world.model("idle")
    gateway.world.head(model)
    spec = {"modelRef": {"name": model.name}, "driver": "Client", "steps": 20}
    metadata = {"name": "idle", "namespace": model.namespace}
    run = {"apiVersion": API_VERSION, "kind": "TrainingRun", "metadata": metadata, "spec": spec}
    apply(apiserver, model.namespace, run | {"status": {"idleSince": FREED}})
    seen = apiserver.kubectl("get", "trun", "idle", "-n", model.namespace, "-o", "json")
    gateway.world.cache.put("TrainingRun", json.loads(seen))
    return model


async def test_a_trainer_that_was_freed_is_called_back_by_those_who_may_train_alone(
    gateway: Gateway, apiserver: ApiServer
) -> None:
    model = freed(apiserver, gateway)
    future = str(Future("create", f"{model.namespace}.{model.name}"))
    for token, woken in ((gateway.users.viewer, ""), (gateway.users.trainer, FREED)):
        reply = await gateway.post(RETRIEVE, {"request_id": future}, token)
        told = await reply.text()
        path = ("-o", "jsonpath={.status.wokenFor}")
        found = apiserver.kubectl("get", "trun", "idle", "-n", model.namespace, *path)
        assert (found, "may not update trainingruns" in told) == (woken, not woken)


async def test_who_may_sample_nothing_sends_no_prompt_in_a_future(gateway: Gateway) -> None:
    model = gateway.world.model("arith")
    padded = {"request_id": f"{sample_of(model, 1)}{'A' * 2**19}"}
    for token, status in ((gateway.users.viewer, 413), (gateway.users.reader, 404)):
        assert (await gateway.post(RETRIEVE, padded, token)).status == status


async def limited(gateway: Gateway, budgets: ByteBudgets) -> None:
    """The same gateway with other budgets, of which one caller may hold half."""
    await gateway.server.close()
    context = dataclasses.replace(gateway.context, budgets=budgets, limits=Limits(body_percent=50))
    gateway.server = TestServer(make_app(context, lambda: ""))
    await gateway.server.start_server(auto_decompress=SERVER["auto_decompress"])


async def test_samples_hold_the_room_of_their_requests_between_two_polls(
    gateway: Gateway, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = await upstream(hang)
    model = serve(gateway, pod.port)
    bodies = ByteBudget("requests", 100_000)
    await limited(gateway, ByteBudgets(bodies, ByteBudget("answers", 2**20)))
    caller = f"system:serviceaccount:{model.namespace}:trainer"
    # Each is of some 30,000 bytes, in fewer than 1000.
    first = {"request_id": sample_of(model, 6000)}
    assert (await gateway.post(RETRIEVE, first)).status == 408
    # Once, though another copy was sent to the pod.
    assert 30_000 < bodies.taken_by(caller) < 31_000
    reply = await gateway.post(RETRIEVE, {"request_id": sample_of(model, 6000, 2)})
    assert (reply.status, (await reply.json())["reason"]) == (429, "TooManyBytes")
    assert len(pod.requests) == 1
    # Nobody asks any more, and its room is free.
    monkeypatch.setattr(samples, "IDLE_SECONDS", 0.0)
    assert (await gateway.post(RETRIEVE, first)).status == 408
    await pod.disconnected.wait()
    await bodies.hold().take(bodies.capacity, seconds=10)


async def test_a_poll_that_waits_holds_nothing_beside_its_sample(
    gateway: Gateway, upstream: Start
) -> None:
    begun = asyncio.Event()

    async def begin(request: web.Request) -> web.Response:
        begun.set()
        return await hang(request)

    model = serve(gateway, (await upstream(begin)).port)
    bodies = ByteBudget("requests", 100_000)
    await limited(gateway, ByteBudgets(bodies, ByteBudget("answers", 2**20)))
    caller = f"system:serviceaccount:{model.namespace}:trainer"
    # A field that asks for nothing makes it long.
    poll = {"request_id": sample_of(model, 1), "x" * 20_000: ""}
    polls = [asyncio.create_task(gateway.post(RETRIEVE, poll))]
    await begun.wait()
    assert 0 < bodies.taken_by(caller) < 1000
    polls.extend(asyncio.create_task(gateway.post(RETRIEVE, poll)) for _ in range(2))
    assert [(await poll).status for poll in polls] == [408] * 3
    # Its samples leave room for its polls.
    more = sample_of(model, 5500, 2)
    for future in (more, sample_of(model, 5500, 3)):
        reply = await gateway.post(RETRIEVE, {"request_id": future})
    assert (reply.status, (await reply.json())["reason"]) == (429, "TooManyBytes")
    assert (await gateway.post(RETRIEVE, poll)).status == 408


@pytest.fixture
def kept_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One caller has room for one result."""
    monkeypatch.setattr(kept_results, "KEPT_BYTES", 2 * (kept_results.RESULT_BYTES + 100))


@pytest.mark.usefixtures("kept_for_one")
async def test_a_result_is_kept_for_a_poll_that_is_lost_while_there_is_room_for_it(
    gateway: Gateway, upstream: Start
) -> None:
    model = serve(gateway, (pod := await upstream(answers((200, {"choices": [CHOICE]})))).port)
    answered = ByteBudget("answers", 2**20)
    await limited(gateway, ByteBudgets(ByteBudget("requests", 2**20), answered))
    first, second = (sample_of(model, 1, number) for number in (1, 2))
    for _ in range(2):
        assert (await gateway.post(RETRIEVE, {"request_id": first})).status == 200
    assert len(pod.requests) == 1
    for _ in range(2):
        assert (await gateway.post(RETRIEVE, {"request_id": second})).status == 200
    assert len(pod.requests) == 3
    # Another caller has room of its own, and no room for answers is taken.
    for _ in range(2):
        reply = await gateway.post(RETRIEVE, {"request_id": second}, gateway.users.reader)
        assert reply.status == 200
    assert len(pod.requests) == 4
    await answered.hold().take(answered.capacity)


@pytest.mark.usefixtures("kept_for_one")
async def test_a_result_that_nobody_waits_for_is_kept_if_there_is_room_and_else_sampled_anew(
    gateway: Gateway, upstream: Start
) -> None:
    answered = asyncio.Event()

    async def late(request: web.Request) -> web.Response:
        await answered.wait()
        return web.json_response({"choices": [CHOICE]})

    pod = await upstream(late)
    model = serve(gateway, pod.port)
    budget = ByteBudget("requests", 2**20)
    await limited(gateway, ByteBudgets(budget, ByteBudget("answers", 2**20)))
    futures = [{"request_id": sample_of(model, 1, number)} for number in (1, 2)]
    for future in futures:
        assert (await gateway.post(RETRIEVE, future)).status == 408
    answered.set()
    # Both have ended.
    await budget.hold().take(budget.capacity, seconds=10)
    budget._give(budget.capacity, "")
    for future in futures:
        assert (await gateway.post(RETRIEVE, future)).status == 200
    assert len(pod.requests) == 3


async def test_room_of_results_that_nobody_asks_for_any_more_is_given_back(
    gateway: Gateway, upstream: Start, kept_for_one: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = serve(gateway, (pod := await upstream(answers((200, {"choices": [CHOICE]})))).port)
    await limited(gateway, ByteBudgets(ByteBudget("requests", 2**20), ByteBudget("answers", 2**20)))
    first, second = ({"request_id": sample_of(model, 1, number)} for number in (1, 2))
    monkeypatch.setattr(samples, "IDLE_SECONDS", 0.0)
    assert (await gateway.post(RETRIEVE, first)).status == 200
    monkeypatch.setattr(samples, "IDLE_SECONDS", 600.0)
    for _ in range(2):
        assert (await gateway.post(RETRIEVE, second)).status == 200
    assert len(pod.requests) == 2


async def test_samples_of_two_callers_are_two_though_they_ask_for_the_same(
    gateway: Gateway, upstream: Start
) -> None:
    pod = await upstream(answers((200, {"choices": [CHOICE]})))
    future = {"request_id": sample_of(serve(gateway, pod.port), 1)}
    for token in (gateway.users.trainer, gateway.users.reader):
        assert (await gateway.post(RETRIEVE, future, token)).status == 200
    callers = {request.headers["Espalier-Caller"] for request in pod.requests}
    assert len(callers) == 2


async def test_a_trainer_names_no_checkpoint_of_another_model_as_what_it_saved(
    gateway: Gateway, upstream: Start, apiserver: ApiServer
) -> None:
    theirs = edited(named(CHECKPOINT, "other-000001"), "spec.modelRef.name", "other")
    apiserver.kubectl("create", "-n", gateway.users.namespace, "-f", "-", stdin=json.dumps(theirs))
    pod = await upstream(answers((200, {"checkpoint": "other-000001", "digest": DIGEST})))
    model = training(gateway, pod.port)
    get = ("get", "ckpt", "other-000001", "-n", model.namespace, "-o", "json")
    gateway.world.cache.put("Checkpoint", json.loads(apiserver.kubectl(*get)))
    trained = TinkerModel.new(Session(model.namespace, "0" * 16), 0, model.name)
    future = Future("save", str(trained), 1, {"type": "save_weights", "path": "best"})
    reply = await gateway.post(RETRIEVE, {"request_id": str(future)})
    told = await reply.json()
    assert "saves" not in json.loads(apiserver.kubectl(*get)).get("status", {})
    assert (reply.status, told["category"]) == (200, "server")
    assert "says that it saved Checkpoint other-000001, which is of model other" in told["error"]


async def test_a_save_of_a_model_that_is_deleted_while_it_waits_has_failed(
    gateway: Gateway, upstream: Start
) -> None:
    async def delete(request: web.Request) -> web.Response:
        gateway.world.checkpoint(model, "arith-000001", DIGEST)
        gateway.world.drop("TrainableModel", model.name, model.namespace)
        return web.json_response({"checkpoint": "arith-000001", "digest": DIGEST})

    model = training(gateway, (await upstream(delete)).port)
    trained = TinkerModel.new(Session(model.namespace, "0" * 16), 0, model.name)
    future = Future("save", str(trained), 1, {"type": "save_weights", "path": "best"})
    reply = await gateway.post(RETRIEVE, {"request_id": str(future)})
    told = await reply.json()
    assert (reply.status, told) == (
        200,
        {"error": f"model {trained.trained} was deleted", "category": "user"},
    )
