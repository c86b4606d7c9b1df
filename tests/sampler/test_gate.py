"""The gate in front of completions: nothing runs while it is shut, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from espalier.sampler.full_weights import gate
from espalier.sampler.full_weights.gate import StoppedError, WeightsGate

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
BODY: Message = {"type": "http.response.body", "body": b"done"}
PROMPTLY = 30.0
AT_ONCE = 0.0


class Engine:
    """An application whose answers wait until they are released."""

    def __init__(self, *, streams: bool = False) -> None:
        self.begun = asyncio.Event()
        self.released = asyncio.Event()
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._streams:
            await send(START)
        self.begun.set()
        await self.released.wait()
        if not self._streams:
            await send(START)
        await send(BODY)


async def request(gate: WeightsGate) -> list[Message]:
    """What the gate answers one request with."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    await gate({"type": "http"}, receive, send)
    return sent


def refusal(sent: list[Message]) -> tuple[int, str]:
    error: dict[str, Any] = json.loads(sent[1]["body"])["error"]
    return sent[0]["status"], error["type"]


async def test_what_runs_ends_before_the_gate_is_shut_and_what_comes_later_waits() -> None:
    engine = Engine()
    subject = WeightsGate(engine)
    running = asyncio.create_task(request(subject))
    await engine.begun.wait()
    engine.begun.clear()
    asyncio.get_running_loop().call_soon(engine.released.set)
    async with subject.shut(PROMPTLY):
        assert running.done()
        waiting = asyncio.create_task(request(subject))
        # Turns enough for a request that were let in to begin.
        for _ in range(10):
            await asyncio.sleep(0)
        assert not engine.begun.is_set()
    assert await running == await waiting == [START, BODY]


async def test_a_completion_that_does_not_end_in_time_is_stopped_with_a_409() -> None:
    engine = Engine()
    subject = WeightsGate(engine)
    running = asyncio.create_task(request(subject))
    await engine.begun.wait()
    async with subject.shut(AT_ONCE):
        engine.released.set()
    assert refusal(await running) == (409, "WeightsReplaced")
    assert await request(subject) == [START, BODY]


async def test_a_stream_that_does_not_end_in_time_breaks() -> None:
    engine = Engine(streams=True)
    subject = WeightsGate(engine)
    running = asyncio.create_task(request(subject))
    await engine.begun.wait()
    async with subject.shut(AT_ONCE):
        pass
    with pytest.raises(StoppedError):
        await running


async def test_a_gate_that_stays_shut_tells_callers_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "HELD_SECONDS", 0.0)
    subject = WeightsGate(Engine())
    async with subject.shut(AT_ONCE):
        assert refusal(await request(subject)) == (503, "WeightsLoading")
