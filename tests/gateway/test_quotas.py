"""What one caller may take, and what a client does that is told to come later."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.gateway.conftest import Gateway
from tests.gateway.test_completions import ASK, Start, answer, serve
from tests.gateway.test_tinker import answers, sampled
from tests.gateway.test_training import training

from espalier.client.gateway import GatewayClient
from espalier.gateway import app, prometheus
from espalier.gateway.access import quotas
from espalier.gateway.access.auth import User
from espalier.gateway.access.byte_budget import ByteBudget
from espalier.gateway.access.quotas import Limits, Quotas
from espalier.gateway.access.remembered import CAPACITY, Remembered
from espalier.gateway.access.reviews_in_flight import ReviewsInFlight
from espalier.gateway.app import SERVER, make_app
from espalier.gateway.problems import RefusalError
from espalier.gateway.tinker.names import Session
from espalier.gateway.world.world import NamespacedName

ANN, BOB = User("ann", ()), User("bob", ())
ARITH, OTHER = NamespacedName("home", "arith"), NamespacedName("home", "other")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "WAIT_SECONDS", 0.05)


async def refusal(kept: Quotas, user: User, model: NamespacedName) -> RefusalError | None:
    try:
        async with kept.sample(user, model):
            return None
    except RefusalError as refused:
        return refused


async def test_requests_at_once_are_bounded_for_each_caller_and_model() -> None:
    kept = Quotas(Limits(requests=2))
    async with kept.sample(ANN, ARITH), kept.sample(ANN, ARITH):
        refused = await refusal(kept, ANN, ARITH)
        assert refused is not None
        assert (refused.status, refused.reason) == (429, "TooManyRequests")
        assert refused.retry_after
        assert await refusal(kept, BOB, ARITH) is None
        assert await refusal(kept, ANN, OTHER) is None
    assert await refusal(kept, ANN, ARITH) is None


async def test_a_request_waits_a_moment_for_room() -> None:
    kept = Quotas(Limits(requests=1))
    async with kept.sample(ANN, ARITH):
        waiting = asyncio.create_task(refusal(kept, ANN, ARITH))
        await asyncio.sleep(0.01)
    assert await waiting is None


async def test_tokens_are_earned_back_by_the_second() -> None:
    now = [0.0]
    kept = Quotas(Limits(tokens_per_minute=60), lambda: now[0])
    async with kept.sample(ANN, ARITH) as share:
        share.spend(90)
    refused = await refusal(kept, ANN, ARITH)
    assert refused is not None
    assert (refused.reason, refused.retry_after) == ("TooManyTokens", 30)
    assert await refusal(kept, BOB, ARITH) is None
    now[0] = 30.0
    assert await refusal(kept, ANN, ARITH) is None


async def test_nothing_is_bounded_where_nothing_is_set() -> None:
    kept = Quotas(Limits(requests=0, tokens_per_minute=0))
    async with kept.sample(ANN, ARITH) as share:
        share.spend(10**9)
        assert await refusal(kept, ANN, ARITH) is None


async def test_what_callers_took_is_forgotten_once_they_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quotas, "SHARES_MOST", 8)
    kept = Quotas(Limits())
    async with kept.sample(ANN, ARITH):
        for number in range(100):
            assert await refusal(kept, User(f"user-{number}", ()), ARITH) is None
    assert len(kept._shares) <= 9
    assert ("ann", ARITH, "sample") in kept._shares


async def test_one_caller_holds_no_more_than_its_share_of_the_bodies() -> None:
    budget = ByteBudget("requests", 100)
    first, second, bobs = (budget.hold() for _ in range(3))
    for hold, owner in ((first, "ann"), (second, "ann"), (bobs, "bob")):
        hold.owned_by(owner, 50)
    # One that is larger than a share is let in alone, because it would never be otherwise.
    await first.take(60)
    with pytest.raises(RefusalError) as refused:
        await second.take(1)
    assert (refused.value.status, refused.value.reason) == (429, "TooManyBytes")
    await bobs.take(40)
    first.release()
    await second.take(50)


async def test_reviews_of_unknown_tokens_are_bounded() -> None:
    reviews, release = ReviewsInFlight(1, 1), asyncio.Event()

    async def review() -> None:
        async with reviews.turn():
            await release.wait()

    running = [asyncio.create_task(review()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(RefusalError) as refused:
        await review()
    assert (refused.value.status, refused.value.reason) == (429, "TooManyReviews")
    release.set()
    await asyncio.gather(*running)
    await review()


async def test_a_flood_of_refusals_makes_no_known_caller_be_forgotten() -> None:
    remembered: Remembered[str] = Remembered()
    asked = Counter[str]()

    async def ask(who: str) -> str:
        asked[who] += 1
        return who if who == "ann" else ""

    for number in range(2 * CAPACITY):
        who = "ann" if number == 0 else f"nobody-{number}"
        await remembered.get(who, partial(ask, who))
    assert await remembered.get("ann", partial(ask, "ann")) == "ann"
    assert asked["ann"] == 1


@asynccontextmanager
async def limited(gateway: Gateway, limits: Limits) -> AsyncIterator[None]:
    """The same gateway with other limits."""
    await gateway.server.close()
    context = dataclasses.replace(gateway.context, limits=limits)
    gateway.server = TestServer(make_app(context, lambda: "", gateway.outbox))
    await gateway.server.start_server(auto_decompress=SERVER["auto_decompress"])
    yield


USAGE = {"prompt_tokens": 3, "total_tokens": 63, "completion_tokens": 60}


async def spends(request: web.Request) -> web.StreamResponse:
    """Answers with 63 tokens; a stream says so in its last event, if it is asked to."""
    body = await request.json()
    choice = {"index": 0, "text": '"usage":{"total_tokens":9}', "finish_reason": "stop"}
    if not body.get("stream"):
        return web.json_response({"model": body["model"], "choices": [choice], "usage": USAGE})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b'data: {"choices":[{"index":0,"text":"2"}]}\n\n')
    if body["stream_options"]["include_usage"]:
        usage = b'{"prompt_tokens":3,"total_tokens":63,"completion_tokens":60}'
        await response.write(b'data: {"choices":[],"usage":' + usage + b"}\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


async def chats(request: web.Request) -> web.StreamResponse:
    """Answers a chat with as many tokens as it may have."""
    body = await request.json()
    token = {"token": "2", "logprob": -1.0, "bytes": None, "top_logprobs": []}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "2"},
        "finish_reason": "stop",
        "logprobs": {"content": [token]},
        "token_ids": [3],
        "prompt_token_ids": [1, 2],
    }
    usage = {"prompt_tokens": 0, "total_tokens": body["max_tokens"]}
    usage["completion_tokens"] = body["max_tokens"]
    answer = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
    return web.json_response(answer | {"choices": [choice], "usage": usage})


@pytest.mark.parametrize("body", [{}, {"stream": True}], ids=["whole", "streamed"])
async def test_the_tokens_of_an_answer_count(
    gateway: Gateway, upstream: Start, body: dict[str, object]
) -> None:
    pod = await upstream(spends)
    serve(gateway, pod.port)
    async with limited(gateway, Limits(tokens_per_minute=60)):
        reply = await gateway.post("/v1/completions", ASK | body)
        # A stream has no event more than was asked for.
        assert reply.status == 200
        assert b'"choices":[]' not in await reply.read()
        reply = await gateway.post("/v1/completions", ASK | body)
        assert reply.status == 429
        assert (await reply.json())["error"]["code"] == "TooManyTokens"
        assert int(reply.headers["Retry-After"]) >= 1
        # Another caller is not told of it.
        assert (await gateway.post("/v1/completions", ASK, gateway.users.reader)).status == 200


async def test_a_stream_keeps_the_usage_that_its_caller_asked_for(
    gateway: Gateway, upstream: Start
) -> None:
    serve(gateway, (await upstream(spends)).port)
    asked = ASK | {"stream": True, "stream_options": {"include_usage": True}}
    reply = await gateway.post("/v1/completions", asked)
    assert b'"total_tokens":63' in await reply.read()


async def test_openais_client_and_ours_wait_as_long_as_they_are_told(
    gateway: Gateway, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(gateway, (await upstream(chats)).port)
    message = {"role": "user", "content": "1+1="}
    spent = {"model": "arith", "messages": [message], "max_tokens": 609}

    async def theirs(url: str, token: str) -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=token) as client:
            await client.chat.completions.create(
                model="arith", messages=[{"role": "user", "content": "1+1="}], max_tokens=1
            )

    async def ours(url: str, token: str) -> None:
        async with GatewayClient(url, "arith", token) as client:
            await client.sample([message], max_tokens=1)

    now = [0.0]
    monkeypatch.setattr(app, "Quotas", lambda limits: Quotas(limits, lambda: now[0]))

    def refusals() -> float:
        return float(prometheus.REFUSED.labels("TooManyTokens")._value.get())

    async def overdrawn(call: Callable[[str, str], Awaitable[None]], token: str) -> None:
        # Ten come back each second, and this takes nine too many.
        assert (await gateway.post("/v1/chat/completions", spent, token)).status == 200
        began = time.monotonic()
        await call(str(gateway.server.make_url("/")).rstrip("/"), token)
        assert time.monotonic() - began >= 0.9

    async def earned_back(before: float) -> None:
        while True:
            if refusals() >= before + 2:
                break
            await asyncio.sleep(0.01)
        now[0] = 1.0

    async with limited(gateway, Limits(tokens_per_minute=600)):
        before, users = refusals(), gateway.users
        both = overdrawn(theirs, users.reader), overdrawn(ours, users.trainer)
        await asyncio.gather(*both, earned_back(before))
        # Each asked once too early, and not before its time a second time.
        assert refusals() == before + 2


async def test_a_command_waits_for_no_sample_and_huds_is_held_and_not_refused() -> None:
    kept = Quotas(Limits(requests=1))
    async with kept.sample(ANN, ARITH), kept.train(ANN, ARITH):
        with pytest.raises(RefusalError):
            async with kept.train(ANN, ARITH):
                pass
        held = asyncio.create_task(_trained(kept, seconds=30))
        await asyncio.sleep(2 * quotas.WAIT_SECONDS)
        assert not held.done()
    await held


async def _trained(kept: Quotas, *, seconds: float) -> None:
    async with kept.train(ANN, ARITH, seconds):
        pass


async def test_tinkers_client_is_told_that_its_sample_waits_for_room(
    gateway: Gateway, upstream: Start
) -> None:
    choice = {"index": 0, "token_ids": [3], "finish_reason": "length"}
    choice["logprobs"] = {"token_logprobs": [-1.0]}
    pod = await upstream(answers((200, {"choices": [choice], "usage": USAGE})))
    model = serve(gateway, pod.port)
    async with limited(gateway, Limits(tokens_per_minute=60)):
        status, _ = await sampled(gateway, model)
        assert status == 200
        status, body = await sampled(gateway, model, 1)
        assert (status, body["queue_state"]) == (408, "paused_capacity")
        assert body["queue_state_reason"].startswith("TooManyTokens")
        assert len(pod.requests) == 1


async def test_tinkers_commands_are_counted_until_the_trainer_has_noted_them(
    gateway: Gateway, upstream: Start
) -> None:
    came, noted = asyncio.Event(), asyncio.Event()

    async def trainer(request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            came.set()
            await noted.wait()
        return web.json_response({}, status=202)

    model = training(gateway, (await upstream(trainer)).port)
    step = {"model_id": f"{Session(model.namespace, '0' * 16)}.{model.name}:train:0"}
    async with limited(gateway, Limits(requests=1)):
        steps = (step | {"seq_id": number} for number in (1, 2))
        first = asyncio.create_task(gateway.post("/api/v1/optim_step", next(steps)))
        await came.wait()
        refused = await gateway.post("/api/v1/optim_step", next(steps))
        assert (refused.status, (await refused.json())["reason"]) == (429, "TooManyRequests")
        noted.set()
        assert (await first).status == 200


async def test_a_flood_of_one_caller_leaves_room_for_another(
    gateway: Gateway, upstream: Start
) -> None:
    release = asyncio.Event()

    async def held(request: web.Request) -> web.StreamResponse:
        if (await request.json()).get("seed"):
            await release.wait()
        return await answer(request)

    serve(gateway, (await upstream(held)).port)
    async with limited(gateway, Limits(requests=4)):
        flood = [
            asyncio.create_task(gateway.post("/v1/completions", ASK | {"seed": 7}))
            for _ in range(32)
        ]
        async with asyncio.timeout(60):
            done: set[asyncio.Task[Any]] = set()
            while len(done) < len(flood) - 4:
                done, waiting = await asyncio.wait(flood, timeout=0.02)
            assert {task.result().status for task in done} == {429}
            reply = await gateway.post("/v1/completions", ASK, gateway.users.reader)
            assert reply.status == 200
            release.set()
            assert {reply.status for reply in await asyncio.gather(*waiting)} == {200}
