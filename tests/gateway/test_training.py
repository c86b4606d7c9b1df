"""Train routes and runs: who may train, what reaches the trainer, what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from dev.ports import free_port
from tests.gateway.conftest import KEYS, Behaviour, Gateway, Upstream
from tests.gateway.test_completions import hang, hang_up
from tests.gateway.world import LOADING, World, digest, waiting

from espalier import identity
from espalier.core.head.head_request import pin
from espalier.core.names import audience
from espalier.gateway.routes import trainer_lookup
from espalier.gateway.routes import training as train
from espalier.gateway.world.turn import active_run
from espalier.gateway.world.world import NamespacedName

A, B = digest("a1"), digest("b2")
Start = Callable[[Behaviour], Awaitable[Upstream]]
STEP = "/v1/models/arith/train/optim-step"
RESULT = {
    "step": 2,
    "checkpoint_id": "arith-000002",
    "sampler_path": "p",
    "state_path": "p",
    "model": "arith",
}


async def commit(request: web.Request) -> web.Response:
    return web.json_response(RESULT, headers={"Espalier-Checkpoint-Digest": B})


def training(gateway: Gateway, port: int) -> NamespacedName:
    """A model at term 3 whose active run trains on a loopback trainer."""
    model = gateway.world.model("arith")
    gateway.world.head(model, A, step=1, term=3)
    gateway.world.run(model, "first")
    gateway.world.pod(model, "arith-trainer-0", role="trainer", ip="127.0.0.1", port=port)
    return model


def test_the_active_run_is_the_oldest_that_still_wants_to_train() -> None:
    world = World()
    model = world.model("arith")
    assert active_run(world.served, model) is None
    world.run(model, "done", step=20, created="2026-01-01T00:00:00Z")
    world.run(model, "suspended", suspend=True, created="2026-01-02T00:00:00Z")
    assert active_run(world.served, model) is None
    world.run(model, "younger", created="2026-01-04T00:00:00Z")
    world.run(model, "older", created="2026-01-03T00:00:00Z")
    found = active_run(world.served, model)
    assert found is not None
    assert found.metadata.name == "older"


async def test_a_command_reaches_the_trainer_as_sent_under_the_heads_term(
    gateway: Gateway, upstream: Start
) -> None:
    async def take(request: web.Request) -> web.Response:
        return web.json_response({"metrics": {"loss:sum": 1.0}, "num_datums": 1})

    trainer = await upstream(take)
    model = training(gateway, trainer.port)
    body = {"inputs": ["x" * 100_000]}
    for path in ("arith", str(model)):
        reply = await gateway.post(
            f"/v1/models/{path}/train/forward-backward", body, **{"Idempotency-Key": "s/1"}
        )
        assert reply.status == 200
        assert await reply.json() == {"metrics": {"loss:sum": 1.0}, "num_datums": 1}
    assert trainer.bodies == [body, body]
    request = trainer.requests[0]
    assert request.path == "/train/forward-backward"
    assert request.headers["Idempotency-Key"] == "s/1"
    assert "Espalier-Term" not in request.headers
    name = audience(model.namespace, model.name, "trainer", "uid-arith-trainer-0")
    caller = identity.verify(KEYS, request.headers["Authorization"], name)
    assert caller == identity.Caller("gateway", 3)


async def test_what_the_run_in_git_gives_binds_the_command_and_is_nobody_elses_to_say(
    gateway: Gateway, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody serves what is committed here.
    monkeypatch.setattr(train, "PROMOTION_SECONDS", 0.05)
    trainer = await upstream(commit)
    model = training(gateway, trainer.port)
    said = {"Espalier-Declared": '{"run": "mine"}', "Idempotency-Key": "s/1"}
    assert (await gateway.post(STEP, {}, **said)).status == 200
    gateway.world.run(model, "first", learningRate="1e-5", sampling={"temperature": "0.7"})
    assert (await gateway.post(STEP, {}, **said)).status == 200
    first, second = (request.headers.get("Espalier-Declared") for request in trainer.requests)
    assert first is None
    assert json.loads(second or "") == {
        "run": "first",
        "loss_fn_config": {},
        "learning_rate": 1e-5,
        "temperature": 0.7,
        "max_tokens": 256,
    }


async def test_the_callers_own_term_is_passed_on(gateway: Gateway, upstream: Start) -> None:
    trainer = await upstream(commit)
    training(gateway, trainer.port)
    reply = await gateway.get("/v1/models/arith/train/state")
    assert reply.status == 200
    await gateway.request("GET", "/v1/models/arith/train/state", headers={"Espalier-Term": "2"})
    assert [r.headers.get("Espalier-Term") for r in trainer.requests] == [None, "2"]


async def test_errors_of_the_trainer_pass_unchanged(gateway: Gateway, upstream: Start) -> None:
    problem = {"detail": "the volume is full", "reason": "VolumeFull", "remedy": "grow it"}

    async def refuse(request: web.Request) -> web.Response:
        return web.json_response(problem, status=507, headers={"Retry-After": "9"})

    training(gateway, (await upstream(refuse)).port)
    # HUD's client, which sends no key, shows its users the detail alone.
    unkeyed = await (await gateway.post(STEP, {})).json()
    assert unkeyed == problem | {"detail": "the volume is full. grow it"}
    reply = await gateway.post(STEP, {}, **{"Idempotency-Key": "s/1"})
    assert (reply.status, await reply.json()) == (507, problem)
    assert reply.headers["Retry-After"] == "9"
    assert "Espalier-Promotion" not in reply.headers


async def test_optim_step_returns_once_the_head_serves_its_checkpoint(
    gateway: Gateway, upstream: Start
) -> None:
    committed = asyncio.Event()

    async def step(request: web.Request) -> web.Response:
        committed.set()
        return await commit(request)

    model = training(gateway, (await upstream(step)).port)
    pending = asyncio.create_task(gateway.post(STEP, {}))
    await committed.wait()
    gateway.world.checkpoint(model, "arith-000002", B, step=2, term=3)
    await gateway.get("/v1/models")
    assert not pending.done()
    gateway.world.head(model, B, step=2, term=3)
    reply = await pending
    assert reply.headers["Espalier-Promotion"] == "Served"
    assert reply.headers["Espalier-Checkpoint-Digest"] == B
    assert await reply.json() == RESULT


async def test_optim_step_of_a_pinned_branch_returns_at_once(
    gateway: Gateway, upstream: Start
) -> None:
    model = training(gateway, (await upstream(commit)).port)
    gateway.world.head(model, A, term=4, agreed=pin("arith-000001", "Branch", 2))
    reply = await gateway.post(STEP, {})
    assert reply.headers["Espalier-Promotion"] == "Pinned"


async def test_optim_step_tells_that_the_head_did_not_follow_in_time(
    gateway: Gateway, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "PROMOTION_SECONDS", 0.05)
    training(gateway, (await upstream(commit)).port)
    reply = await gateway.post(STEP, {})
    assert reply.status == 200
    assert reply.headers["Espalier-Promotion"] == "Timeout"
    # A timer may be early by its clock's grain.
    assert float(reply.headers["Espalier-Promotion-Seconds"]) >= 0.04


async def refused(reply: aiohttp.ClientResponse) -> tuple[int, str]:
    problem = await reply.json()
    assert set(problem) == {"detail", "reason", "remedy"}
    return reply.status, problem["reason"]


async def test_a_client_reads_what_its_run_binds_it_to_without_a_trainer(
    gateway: Gateway,
) -> None:
    model = training(gateway, free_port())
    path = "/v1/models/arith/train/declared"
    assert await (await gateway.get(path)).json() == {}
    gateway.world.run(model, "first", learningRate="1e-5", advantage={"scale": "GroupStd"})
    assert await (await gateway.get(path)).json() == {
        "run": "first",
        "loss_fn_config": {},
        "learning_rate": 1e-5,
        "advantage_source": "Estimated",
        "advantage_estimator": "GroupMean",
        "advantage_scale": "GroupStd",
    }


async def test_no_active_run_is_a_409_with_the_remedy(gateway: Gateway) -> None:
    gateway.world.model("arith")
    reply = await gateway.post(STEP, {})
    assert "spec.modelRef.name arith" in (await reply.json())["remedy"]
    assert await refused(reply) == (409, "NoActiveRun")


async def test_a_head_that_pauses_is_a_409(gateway: Gateway, upstream: Start) -> None:
    trainer = await upstream(commit)
    model = training(gateway, trainer.port)
    gateway.world.head(model, A, term=4, agreed=pin("arith-000001", "Pause", 2))
    assert await refused(await gateway.post(STEP, {})) == (409, "HeadPinned")
    assert not trainer.requests


async def test_a_run_that_is_held_for_its_log_probs_is_a_409_until_it_is_edited(
    gateway: Gateway, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody serves what is committed here.
    monkeypatch.setattr(train, "PROMOTION_SECONDS", 0.05)
    trainer = await upstream(commit)
    model = training(gateway, trainer.port)
    spec = {"modelRef": {"name": model.name}, "driver": "Client", "steps": 20}
    told = {
        **{"type": "Suspended", "status": "True", "reason": "LogprobsMisaligned"},
        **{"message": "policy/mismatch_kl is 0.02", "observedGeneration": 1},
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    status = {"conditions": [told]}
    gateway.world.put("TrainingRun", "first", metadata={"generation": 1}, spec=spec, status=status)
    reply = await gateway.post(STEP, {})
    assert "policy/mismatch_kl is 0.02" in (await reply.json())["detail"]
    assert await refused(reply) == (409, "LogprobsMisaligned")
    path = f"/v1/runs/{gateway.users.namespace}/first"
    assert (await (await gateway.get(path)).json())["paused"] is True
    assert not trainer.requests
    # Edited, and the operator has not looked yet: it may be what lets the run go.
    gateway.world.put("TrainingRun", "first", metadata={"generation": 2}, spec=spec, status=status)
    assert (await (await gateway.get(path)).json())["paused"] is False
    assert (await gateway.post(STEP, {})).status == 200


async def test_training_needs_update_on_the_active_run(gateway: Gateway, upstream: Start) -> None:
    trainer = await upstream(commit)
    training(gateway, trainer.port)
    reply = await gateway.post(STEP, {}, gateway.users.reader)
    assert "verb update on trainingruns" in (await reply.json())["remedy"]
    assert await refused(reply) == (403, "Forbidden")
    assert await refused(await gateway.post(STEP, {}, "")) == (401, "NoToken")
    assert not trainer.requests


async def test_an_unknown_model_and_an_unknown_command_are_404(gateway: Gateway) -> None:
    assert await refused(await gateway.post(STEP.replace("arith", "nix"), {})) == (
        404,
        "ModelNotFound",
    )
    reply = await gateway.post("/v1/models/arith/train/jump", {})
    assert await refused(reply) == (404, "NoSuchRoute")


async def test_a_trainer_that_is_not_ready_is_a_503_with_the_kubernetes_reason(
    gateway: Gateway,
) -> None:
    model = training(gateway, 1)
    status = {"containerStatuses": [waiting("CrashLoopBackOff", "back-off 10s", "trainer")]}
    gateway.world.pod(model, "arith-trainer-0", role="trainer", **status)
    reply = await gateway.post(STEP, {})
    assert reply.headers["Retry-After"]
    assert await refused(reply) == (503, "CrashLoopBackOff")
    gateway.world.drop("Pod", "arith-trainer-0")
    keyed = {"Idempotency-Key": "s/1"}
    assert await refused(await gateway.post(STEP, {}, **keyed)) == (503, "Pending")


async def test_a_command_without_a_key_is_held_until_a_starting_trainer_takes_commands(
    gateway: Gateway, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_lookup, "ASK_SECONDS", 0.01)
    assigned = asyncio.Event()
    asked: asyncio.Queue[str] = asyncio.Queue()

    async def starting(request: web.Request) -> web.Response:
        asked.put_nowait(request.path)
        if not assigned.is_set():
            problem = {"detail": "no run yet", "reason": "AwaitingAssignment", "remedy": ""}
            return web.json_response(problem, status=503)
        return web.json_response({"metrics": {}, "num_datums": 1})

    trainer = await upstream(starting)
    model = training(gateway, trainer.port)
    gateway.world.pod(model, "arith-trainer-0", role="trainer", **LOADING)
    path = "/v1/models/arith/train/forward-backward"
    held = asyncio.create_task(gateway.post(path, {"inputs": []}))
    keyed = {"Idempotency-Key": "s/1"}
    assert await refused(await gateway.post(path, {}, **keyed)) == (503, "ContainersNotReady")
    # Ready, though its process has just ended.
    gateway.world.pod(model, "arith-trainer-0", role="trainer", ip="127.0.0.1", port=free_port())
    await asyncio.sleep(0.05)
    gateway.world.pod(model, "arith-trainer-0", role="trainer", ip="127.0.0.1", port=trainer.port)
    assert await asked.get() == "/train/state"
    assigned.set()
    assert (await held).status == 200
    assert trainer.bodies[-1] == {"inputs": []}
    before = len(trainer.requests)
    await gateway.post(path, {"inputs": []})
    # It is asked once, not before each command.
    assert len(trainer.requests) == before + 1


async def test_a_held_command_ends_with_the_reason_that_held_it(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "HELD_SECONDS", 0.05)
    model = training(gateway, 1)
    gateway.world.pod(model, "arith-trainer-0", role="trainer", **LOADING)
    assert await refused(await gateway.post(STEP, {})) == (503, "ContainersNotReady")


@pytest.mark.parametrize("lost", ["refused", "aborted"])
async def test_a_command_is_never_sent_twice_by_the_gateway(
    gateway: Gateway, upstream: Start, lost: str
) -> None:
    trainer = await upstream(hang_up)
    training(gateway, free_port() if lost == "refused" else trainer.port)
    reply = await gateway.post(STEP, {})
    assert "applied once" in (await reply.json())["remedy"]
    assert await refused(reply) == (503, "TrainerUnreachable")
    commands = [request for request in trainer.requests if request.method == "POST"]
    assert len(commands) == (0 if lost == "refused" else 1)


@pytest.mark.parametrize(
    ("limit", "key"),
    [("TRAINER_SECONDS", {"Idempotency-Key": "s/1"}), ("ANSWER_SECONDS", {})],
    ids=["of a command with a key", "of HUD's client, which gives up at 600 s"],
)
async def test_a_trainer_that_takes_too_long_is_a_504(
    gateway: Gateway,
    upstream: Start,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    key: dict[str, str],
) -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        # A command without a key asks first whether the trainer takes commands.
        return web.json_response({}) if request.method == "GET" else await hang(request)

    monkeypatch.setattr(train, limit, 0.2)
    training(gateway, (await upstream(slow)).port)
    assert await refused(await gateway.post(STEP, {}, **key)) == (504, "TrainerTimeout")


async def test_the_time_in_which_rights_are_looked_up_is_part_of_what_huds_client_waits(
    gateway: Gateway, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def takes_a_moment(request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            await asyncio.sleep(0.3)
        return web.json_response({})

    asked = gateway.context.cluster.review_access

    async def slow(*args: Any, **more: Any) -> bool:
        await asyncio.sleep(0.5)
        return await asked(*args, **more)

    monkeypatch.setattr(gateway.context.cluster, "review_access", slow)
    monkeypatch.setattr(train, "ANSWER_SECONDS", 0.6)
    training(gateway, (await upstream(takes_a_moment)).port)
    path = "/v1/models/arith/train/zero-grad"
    assert await refused(await gateway.post(path, {})) == (504, "TrainerTimeout")
    # What is remembered takes no time.
    monkeypatch.setattr(train, "ANSWER_SECONDS", 60.0)
    assert (await gateway.post(path, {})).status == 200


async def test_huds_client_is_answered_before_it_gives_up_though_nobody_serves_its_step_yet(
    gateway: Gateway, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "ANSWER_SECONDS", 0.2)
    training(gateway, (await upstream(commit)).port)
    reply = await gateway.post(STEP, {})
    assert (reply.status, reply.headers["Espalier-Promotion"]) == (200, "Timeout")


async def test_a_runner_reads_its_run_as_it_is_now(gateway: Gateway) -> None:
    model = training(gateway, 1)
    gateway.world.run(model, "first", learningRate="1e-4")
    path = f"/v1/runs/{gateway.users.namespace}/first"
    run = await (await gateway.get(path)).json()
    assert (run["uid"], run["model"], run["term"]) == ("uid-first", "arith", 3)
    assert (run["suspended"], run["paused"], run["over"]) == (False, False, False)
    assert run["spec"]["learningRate"] == "1e-4"
    assert run["spec"]["optimizer"]["beta2"] == "0.95"
    gateway.world.run(model, "first", suspend=True)
    gateway.world.head(model, A, term=4, agreed=pin("arith-000001", "Pause", 2))
    run = await (await gateway.get(path)).json()
    assert (run["term"], run["suspended"], run["paused"]) == (4, True, True)
    gateway.world.run(model, "first", step=20)
    assert (await (await gateway.get(path)).json())["over"] is True


async def test_a_run_is_read_by_those_who_may_get_it(gateway: Gateway) -> None:
    path = f"/v1/runs/{gateway.users.namespace}/first"
    assert await refused(await gateway.get(path)) == (404, "RunNotFound")
    assert await refused(await gateway.get(path, gateway.users.reader)) == (403, "Forbidden")
