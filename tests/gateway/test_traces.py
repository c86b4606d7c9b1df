"""Traces of models whose trainer is not there: held, and handed over in their order."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from tests.gateway.conftest import Behaviour, Gateway, Upstream
from tests.gateway.world import LOADING, digest

from espalier.gateway.access.auth import User
from espalier.gateway.hud import traces
from espalier.gateway.hud.trace_outbox import HELD_SECONDS, REQUEST_BYTES, TraceOutbox
from espalier.gateway.world.world import NamespacedName

Start = Callable[[Behaviour], Awaitable[Upstream]]
A = digest("a1")
TRACE, JOB = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
TURN = {
    "id": "c",
    "object": "chat.completion",
    "model": "x",
    "prompt_token_ids": [1, 2],
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "7"},
            "token_ids": [3],
            "logprobs": {"content": [{"logprob": -0.5}]},
        }
    ],
}


async def complete(_: web.Request) -> web.Response:
    return web.json_response(TURN)


async def take(_: web.Request) -> web.Response:
    return web.json_response({"metrics": {"loss:sum": 1.0}, "num_datums": 1})


async def served(gateway: Gateway, upstream: Start) -> NamespacedName:
    """A model that is sampled, and that nothing trains."""
    model = gateway.world.model("arith")
    gateway.world.head(model, A, step=1, term=3)
    port = (await upstream(complete)).port
    gateway.world.pod(model, "arith-rollout-0", ip="127.0.0.1", port=port)
    return model


async def sample(gateway: Gateway, question: str = "3 + 4") -> str:
    body = {"model": "arith", "messages": [{"role": "user", "content": question}]}
    reply = await gateway.post("/v1/chat/completions", body, **{"Trace-Id": TRACE})
    assert reply.status == 200
    return reply.headers[traces.TRACE_KEPT]


async def rolled_out(gateway: Gateway) -> list[str]:
    """As HUD's client does it: who has the job, the beginning, two turns, the end."""
    said = []
    for path, report in (
        (f"/v2/trace/job/{JOB}/enter", {"name": "night", "group": 1}),
        (f"/v2/trace/{TRACE}/enter", {"job_id": JOB, "model": "arith"}),
    ):
        reply = await gateway.post(path, report)
        assert reply.status == 200, await reply.text()
        said.append(reply.headers.get(traces.TRACE_KEPT, ""))
    said += [await sample(gateway), await sample(gateway, "5 + 6")]
    reply = await gateway.post(f"/v2/trace/{TRACE}/exit", {"reward": 1.0})
    assert reply.status == 200, await reply.text()
    return [*said, reply.headers.get(traces.TRACE_KEPT, "")]


def train(gateway: Gateway, model: NamespacedName, port: int) -> None:
    gateway.world.run(model, "first")
    gateway.world.pod(model, "arith-trainer-0", role="trainer", ip="127.0.0.1", port=port)


def got(trainer: Upstream) -> list[str]:
    return [request.path for request in trainer.requests if request.method == "POST"]


async def test_what_is_sampled_before_a_run_is_trained_on_after(
    gateway: Gateway, upstream: Start
) -> None:
    model = await served(gateway, upstream)
    assert await rolled_out(gateway) == ["Held"] * 5
    trainer = await upstream(take)
    train(gateway, model, trainer.port)
    reply = await gateway.post("/v1/models/arith/train/forward-backward", {"inputs": [TRACE]})
    assert reply.status == 200
    assert got(trainer) == [
        f"/traces/job/{JOB}/enter",
        f"/traces/{TRACE}/enter",
        *[f"/traces/{TRACE}/samples"] * 2,
        f"/traces/{TRACE}/exit",
        "/train/forward-backward",
    ]
    sampled = [
        b for r, b in zip(trainer.requests, trainer.bodies, strict=True) if "samples" in r.path
    ]
    turn = {"prompt_token_ids": [1, 2], "output_token_ids": [3], "output_logprobs": [-0.5]}
    assert sampled == [turn | {"temperature": 1.0, "shifted_by": []}] * 2
    # Once.
    await gateway.post("/v1/models/arith/train/forward-backward", {"inputs": [TRACE]})
    assert len(got(trainer)) == 7


async def test_they_are_handed_over_without_a_training_call_too(
    gateway: Gateway, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "LOOK_SECONDS", 0.01)
    model = await served(gateway, upstream)
    await rolled_out(gateway)
    trainer = await upstream(take)
    train(gateway, model, trainer.port)
    task = gateway.outbox.task
    assert task is not None
    while len(got(trainer)) < 5:
        await trainer_asked()
    assert not gateway.outbox.waiting(model)


async def trainer_asked() -> None:
    await asyncio.sleep(0.01)


async def test_turns_that_follow_held_ones_do_not_overtake_them(
    gateway: Gateway, upstream: Start
) -> None:
    loading = True

    async def load(request: web.Request) -> web.Response:
        if loading:
            problem = {"reason": "Loading", "detail": "the base", "remedy": ""}
            return web.json_response(problem, status=503)
        return await take(request)

    model = await served(gateway, upstream)
    assert await sample(gateway) == "Held"
    trainer = await upstream(load)
    train(gateway, model, trainer.port)
    # Its pod is ready, and it takes nothing yet.
    assert await sample(gateway, "5 + 6") == "Held"
    reply = await gateway.post(f"/v2/trace/{TRACE}/enter", {"model": "arith"})
    assert reply.headers[traces.TRACE_KEPT] == "Held"
    loading = False
    reply = await gateway.post(f"/v2/trace/{TRACE}/exit", {"reward": 1.0})
    assert (reply.status, traces.TRACE_KEPT in reply.headers) == (200, False)
    assert got(trainer)[-4:] == [
        *[f"/traces/{TRACE}/samples"] * 2,
        f"/traces/{TRACE}/enter",
        f"/traces/{TRACE}/exit",
    ]


async def test_a_trainer_that_starts_misses_nothing(gateway: Gateway, upstream: Start) -> None:
    model = await served(gateway, upstream)
    gateway.world.run(model, "first")
    gateway.world.pod(model, "arith-trainer-0", role="trainer", ip="127.0.0.1", port=1, **LOADING)
    assert await rolled_out(gateway) == ["Held"] * 5


async def test_nothing_is_held_for_who_may_not_train(gateway: Gateway, upstream: Start) -> None:
    await served(gateway, upstream)
    reader = gateway.users.reader
    body = {"model": "arith", "messages": [{"role": "user", "content": "1"}]}
    reply = await gateway.post("/v1/chat/completions", body, reader, **{"Trace-Id": TRACE})
    assert (reply.status, reply.headers[traces.TRACE_KEPT]) == (200, "NotKept")
    reply = await gateway.post(f"/v2/trace/{TRACE}/enter", {"model": "arith"}, reader)
    assert (reply.status, (await reply.json())["reason"]) == (404, "NothingTrains")
    assert len(gateway.outbox) == 0


async def test_a_full_outbox_says_so(gateway: Gateway, upstream: Start) -> None:
    await served(gateway, upstream)
    gateway.outbox._most = 40
    assert await sample(gateway) == "NotKept"
    reply = await gateway.post(
        f"/v2/trace/{TRACE}/enter", {"model": "arith", "task_slug": "x" * 40}
    )
    assert (reply.status, (await reply.json())["reason"]) == (503, "TracesFull")


async def test_reports_of_nothing_take_room_too(gateway: Gateway, upstream: Start) -> None:
    await served(gateway, upstream)
    gateway.outbox._most = 8 * REQUEST_BYTES
    told = []
    while len(told) < 10 and "TooManyTraces" not in told:
        job = uuid.UUID(int=len(told))
        reply = await gateway.post(f"/v2/trace/job/{job}/enter", {})
        told.append((await reply.json()).get("reason", "Held"))
    # By its own half; the room is not full.
    assert told == ["Held"] * 3 + ["TooManyTraces"]
    assert reply.status == 429


def test_one_caller_leaves_room_for_the_traces_of_others() -> None:
    model = NamespacedName("home", "arith")
    box = TraceOutbox(most_bytes=4 * (REQUEST_BYTES + 100))
    greedy, other = User("greedy", ()), User("other", ())
    held = [box.put(greedy, f"t{n}", "/t/samples", bytes(100), model) for n in range(4)]
    assert held == ["Held", "Held", "TooMany", "TooMany"]
    # By another of its tokens, or an API key, it is the same caller.
    key = User("greedy", (), api_key="0" * 12)
    assert box.put(key, "t", "/t/samples", bytes(100), model) == "TooMany"
    puts = [box.put(other, "o", "/o/samples", bytes(100), model) for _ in range(3)]
    assert puts == ["Held", "Held", "Full"]


def test_what_is_held_has_an_end() -> None:
    now = 0.0
    box, user, model = TraceOutbox(lambda: now), User("u", ()), NamespacedName("home", "arith")
    assert box.put(user, "t", "/t/samples", b"x", model) == "Held"
    # A later report of the trace is of the same model.
    assert box.put(user, "t", "/t/exit", b"x", None) == "Held"
    assert [item.model for item in box.waiting(model)] == [model, model]
    now = HELD_SECONDS
    assert box.waiting(model) == []
    assert len(box) == 0


def test_what_is_for_every_trainer_is_given_to_each_once() -> None:
    box, user = TraceOutbox(), User("u", ())
    first, second = NamespacedName("home", "a"), NamespacedName("home", "b")
    assert box.put(user, "j", "/job/j/enter", json.dumps({}).encode(), None) == "Held"
    (item,) = box.waiting(first)
    box.give(item, first)
    assert box.waiting(first) == []
    assert box.waiting(second) == [item]
