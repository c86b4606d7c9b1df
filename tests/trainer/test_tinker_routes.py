"""The routes of Tinker's clients: accepted at once, told when it is on disk."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from tests.telemetry.collector import SOON, collector
from tests.tinker.messages import MODEL_ID
from tests.trainer import tinker, tiny
from tests.trainer.test_service import AUDIENCE, KEYS, Client, bearer, ended, make_engine
from tests.trainer.tiny import Volume

from espalier.api.wire.gradients import ForwardRequest
from espalier.api.wire.headers import CLIENT, IDEMPOTENCY_KEY, TERM
from espalier.telemetry import spans
from espalier.tinker import messages_pb2 as pb
from espalier.trainer.engine import queue
from espalier.trainer.engine.commands import Empty
from espalier.trainer.engine.engine import Engine
from espalier.trainer.http import one_client
from espalier.trainer.http.service import Service
from espalier.trainer.policy.policy import Policy


@asynccontextmanager
async def trainer(
    volume: Volume, policy: Policy, *, assigned: bool = True, gap_seconds: float = 60.0
) -> AsyncIterator[Client]:
    service = Service(KEYS, AUDIENCE, gap_seconds=gap_seconds)
    async with TestClient(TestServer(service.app())) as made:
        await service.start(lambda publish: make_engine(volume, policy, publish))
        if assigned:
            await assign(made)
        yield made
        await ended(service)


async def assign(client: Client) -> None:
    sent = tiny.assignment().model_dump_json()
    assert (await client.post("/assign", data=sent, headers=bearer("operator"))).status == 200


@pytest.fixture
async def client(volume: Volume, policy: Policy) -> AsyncIterator[Client]:
    async with trainer(volume, policy) as made:
        yield made


async def send(
    client: Client, kind: str, seq: int, body: bytes, model_id: str = MODEL_ID, **more: str
) -> tuple[int, dict[str, Any]]:
    headers = bearer() | {IDEMPOTENCY_KEY: f"{model_id}/{seq}"} | more
    answer = await client.post(f"/train/tinker/{kind}", data=body, headers=headers)
    return answer.status, await answer.json()


async def result(client: Client, seq: int, wait: float = 20, model_id: str = MODEL_ID) -> Any:
    path = f"/train/tinker/results/{model_id}/{seq}?wait={wait}"
    return await client.get(path, headers=bearer())


async def told(client: Client, seq: int) -> dict[str, Any]:
    answer = await result(client, seq)
    assert answer.status == 200
    body: dict[str, Any] = await answer.json()
    return body


async def test_a_step_is_accepted_at_once_and_told_as_the_sdk_reads_it(client: Client) -> None:
    body = tinker.forward_backward(1, tinker.batch())
    assert await send(client, "optim-step", 2, tinker.optim_step(2)) == (202, {})
    waiting = asyncio.create_task(result(client, 2))
    for _ in range(2):
        assert await send(client, "forward-backward", 1, body) == (202, {})
    gradients = await result(client, 1)
    assert gradients.headers["Content-Type"] == "application/x-protobuf"
    output = pb.ForwardBackwardOutput.FromString(await gradients.read())
    assert output.metrics["tokens:sum"] > 0
    step = await waiting
    metrics = (await step.json())["metrics"]
    assert (step.status, metrics["step"]) == (200, 1.0)
    assert metrics["optimizer/learning_rate"] == 1e-2
    assert step.headers["Espalier-Checkpoint"] == "arith-000001"
    assert step.headers["Espalier-Checkpoint-Digest"].startswith("sha256:")
    assert (await told(client, 2))["metrics"] == metrics


async def test_a_command_that_waits_for_its_turn_stays_in_the_trace_that_it_came_in(
    volume: Volume, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*SOON)
    sent = {
        2: ("optim-step", tinker.optim_step(2)),
        1: ("forward-backward", tinker.forward_backward(1, tinker.batch())),
    }
    with collector() as kept:
        spans.start(kept.environment(), "espalier-trainer")
        try:
            async with trainer(volume, policy) as client:
                for seq, (kind, body) in sent.items():
                    trace = f"00-{seq:032x}-{1:016x}-01"
                    assert await send(client, kind, seq, body, traceparent=trace) == (202, {})
                await told(client, 2)
        finally:
            spans.stop()
        traces = [one.trace for one in kept.spans if one.name == "engine tinker"]
    assert traces == [f"{seq:032x}" for seq in (1, 2)]


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        ("optim-step", tinker.optim_step(1, learning_rate=0.0), "adam_params.learning_rate"),
        ("optim-step", tinker.optim_step(1, momentum=0.9), "adam_params.momentum"),
        ("forward-backward", b"\xff\xff", "body"),
        ("forward-backward", tinker.forward_backward(1, []), "data"),
        ("forward-backward", tinker.forward_backward(1, tinker.batch(), "custom"), "loss_fn"),
        ("save-weights", json.dumps({"model_id": MODEL_ID}).encode(), "body"),
        ("optim-step", tinker.optim_step(2), "seq_id"),
    ],
)
async def test_what_cannot_be_applied_is_refused_at_once_and_uses_up_its_number(
    client: Client, kind: str, body: bytes, field: str
) -> None:
    status, problem = await send(client, kind, 1, body)
    assert status == 422
    assert problem["detail"].startswith(field)
    assert (await told(client, 1))["category"] == "user"
    await send(client, "forward-backward", 2, tinker.forward_backward(2, tinker.batch()))
    assert (await result(client, 2)).headers["Content-Type"] == "application/x-protobuf"


async def test_a_result_says_what_it_waits_for(volume: Volume, policy: Policy) -> None:
    async with trainer(volume, policy, assigned=False) as client:
        assert (await result(client, 1, wait=0)).status == 404
        await send(client, "forward-backward", 2, tinker.forward_backward(2, tinker.batch()))
        pending = await result(client, 2, wait=0)
        assert (pending.status, (await pending.json())["reason"]) == (408, "NumberMissing")
        await send(client, "forward-backward", 1, tinker.forward_backward(1, tinker.batch()))
        pending = await result(client, 1, wait=0.3)
        assert (pending.status, (await pending.json())["reason"]) == (408, "AwaitingAssignment")
        await assign(client)
        assert (await result(client, 2)).status == 200


async def test_a_number_that_does_not_come_fails_what_waits_for_it(
    volume: Volume, policy: Policy
) -> None:
    async with trainer(volume, policy, gap_seconds=0.2) as client:
        await send(client, "optim-step", 2, tinker.optim_step(2))
        failed = await told(client, 2)
        assert failed["category"] == "server"
        assert "seq_id 1" in failed["error"]
        assert (await told(client, 1))["category"] == "server"


async def test_another_client_is_refused_by_name_until_the_first_has_been_quiet(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = f"{MODEL_ID}-2"
    await send(client, "forward-backward", 1, tinker.forward_backward(1, tinker.batch()))

    async def tries(seq: int, **changes: Any) -> tuple[int, dict[str, Any]]:
        body = tinker.forward_backward(seq, tinker.batch(), model_id=other, **changes)
        return await send(client, "forward-backward", seq, body, other)

    status, problem = await tries(1)
    assert (status, problem["reason"]) == (409, "AnotherClientTrains")
    assert MODEL_ID in problem["detail"]
    assert "forks this one" in problem["remedy"]
    # It may read, and its refused number is used up.
    assert await tries(2, forward_only=True) == (202, {})
    await send(client, "optim-step", 2, tinker.optim_step(2))
    assert (await told(client, 2))["metrics"]["step"] == 1.0
    monkeypatch.setattr(one_client, "QUIET_SECONDS", 0.0)
    assert await tries(3) == (202, {})
    monkeypatch.undo()
    gradients = tinker.forward_backward(3, tinker.batch())
    assert (await send(client, "forward-backward", 3, gradients))[0] == 409


async def direct(client: Client, kind: str, body: Any, key: str | None) -> tuple[int, str]:
    """A command of HUD's client, which has no key, or of ours."""
    headers = bearer() | ({IDEMPOTENCY_KEY: key} if key else {CLIENT: "unkeyed-ann"})
    answer = await client.post(f"/train/{kind}", data=body.model_dump_json(), headers=headers)
    return answer.status, (await answer.json()).get("reason", "")


@pytest.mark.parametrize("key", [None, "ours/1"])
async def test_other_clients_are_refused_while_one_of_tinkers_trains_and_may_then_take_over(
    client: Client, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    await send(client, "forward-backward", 1, tinker.forward_backward(1, tinker.batch()))
    for kind, body in (
        ("forward-backward", tiny.forward_backward()),
        ("optim-step", tiny.optim_step()),
        ("zero-grad", Empty()),
    ):
        refused = await direct(client, kind, body, key)
        assert refused == (409, "AnotherClientTrains"), kind
    forward = ForwardRequest(inputs=tiny.trajectories(), group_size=3)
    assert await direct(client, "forward", forward, "ours/2" if key else None) == (200, "")
    assert (await result(client, 1)).status == 200

    monkeypatch.setattr(one_client, "QUIET_SECONDS", 0.0)
    again = "ours/3" if key else None
    assert await direct(client, "forward-backward", tiny.forward_backward(), again) == (200, "")
    monkeypatch.undo()
    state = await (await client.get("/train/state", headers=bearer())).json()
    assert state["pending"] == 1, "what Tinker's client left was dropped"
    status, problem = await send(client, "optim-step", 2, tinker.optim_step(2))
    assert (status, problem["reason"]) == (409, "AnotherClientTrains")


@pytest.mark.parametrize("key", [None, "ours/1"])
async def test_a_command_that_is_refused_takes_the_model_for_nobody(
    client: Client, key: str | None
) -> None:
    assert await direct(client, "optim-step", tiny.optim_step(), key) == (409, "NoGradients")
    # Of another term, which shows when its turn comes; its step fails with it.
    late = {TERM: "9"}
    gradients = tinker.forward_backward(1, tinker.batch())
    assert (await send(client, "forward-backward", 1, gradients, **late))[0] == 202
    assert (await send(client, "optim-step", 2, tinker.optim_step(2), **late))[0] == 202
    assert (await told(client, 2))["category"] == "user"
    other = f"{MODEL_ID}-2"
    body = tinker.forward_backward(1, tinker.batch(), model_id=other)
    assert await send(client, "forward-backward", 1, body, other) == (202, {})
    # Of one whose first command was applied the next that fails takes nothing away.
    failed = tinker.optim_step(2, model_id=other)
    assert (await send(client, "optim-step", 2, failed, other, **late))[0] == 202
    assert "term 9" in (await (await result(client, 2, model_id=other)).json())["error"]
    refused = await direct(client, "zero-grad", Empty(), key and "ours/2")
    assert refused == (409, "AnotherClientTrains")


async def test_who_is_told_that_a_command_was_refused_may_count_on_it(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the engine has not yet said that the command's turn has ended."""
    going_on, turn_of = threading.Event(), queue.take_turn

    def slowly(engine: Engine) -> queue.Turn:
        turn = turn_of(engine)
        if turn.answered is not None and turn.answered.session == MODEL_ID:
            going_on.wait(60)
        return turn

    monkeypatch.setattr(queue, "take_turn", slowly)
    gradients = tinker.forward_backward(1, tinker.batch())
    assert (await send(client, "forward-backward", 1, gradients, **{TERM: "9"}))[0] == 202
    try:
        while (await result(client, 1, wait=0.05)).status == 408:
            pass
        other = f"{MODEL_ID}-2"
        body = tinker.forward_backward(1, tinker.batch(), model_id=other)
        assert await send(client, "forward-backward", 1, body, other) == (202, {})
    finally:
        going_on.set()


async def test_a_batch_of_another_client_waits_for_its_step_however_quiet_that_is(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await direct(client, "forward-backward", tiny.forward_backward(), "a/1"))[0] == 200
    gradients = tinker.forward_backward(1, tinker.batch())
    status, problem = await send(client, "forward-backward", 1, gradients)
    assert (status, problem["reason"]) == (409, "AnotherClientTrains")
    monkeypatch.setattr(one_client, "QUIET_SECONDS", 0.0)
    status, problem = await send(
        client, "forward-backward", 2, tinker.forward_backward(2, tinker.batch())
    )
    assert "its batch waits for a step" in problem["detail"]
    # Another of its processes goes on: to the trainer they are one client.
    assert await direct(client, "optim-step", tiny.optim_step(), "b/1") == (200, "")
    gradients = tinker.forward_backward(3, tinker.batch())
    assert await send(client, "forward-backward", 3, gradients) == (202, {})
    assert (await result(client, 3)).status == 200
    monkeypatch.undo()
    # The answer that was lost is told, whoever trains now.
    assert await direct(client, "optim-step", tiny.optim_step(), "b/1") == (200, "")


async def test_a_run_that_begins_is_nobodys_yet(client: Client) -> None:
    await send(client, "forward-backward", 1, tinker.forward_backward(1, tinker.batch()))
    assert (await result(client, 1)).status == 200
    next_run = tiny.assignment(term=2, run="default/next").model_dump_json()
    assert (await client.post("/assign", data=next_run, headers=bearer("operator"))).status == 200
    assert await direct(client, "forward-backward", tiny.forward_backward(), "a/1") == (200, "")


async def test_a_trainer_that_starts_again_goes_on_with_what_was_accepted(
    volume: Volume, policy: Policy
) -> None:
    async with trainer(volume, policy, assigned=False) as client:
        await send(client, "forward-backward", 1, tinker.forward_backward(1, tinker.batch()))
        await send(client, "optim-step", 2, tinker.optim_step(2))
    async with trainer(volume, policy) as client:
        metrics = (await told(client, 2))["metrics"]
    async with trainer(volume, policy) as client:
        assert (await told(client, 2))["metrics"] == metrics
        assert (await result(client, 1)).status == 200
