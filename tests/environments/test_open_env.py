"""Episodes of OpenEnv's protocol: against a stand-in, and, marked ``packages``, the real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from dev.ports import free_port
from tests.environments.open_env_process import serving
from tests.environments.packages import OPENENV, interpreter
from tests.environments.talk import Model, played

from espalier.api.run.taskset import Taskset
from espalier.environments import open_env
from espalier.environments.errors import RolloutFailedError
from espalier.environments.open_env import MOST_MESSAGE_BYTES
from espalier.environments.open_environment import open_environment

SERVER = Path(__file__).with_name("open_env_server.py")

Chat = Sequence[Mapping[str, Any]]


class StandIn:
    """The game of ``open_env_server``, in the words that openenv 0.10.0 was heard to use."""

    def __init__(self) -> None:
        self.playing = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/ws", self._play)
        return app

    async def _play(self, request: web.Request) -> web.WebSocketResponse:
        link = web.WebSocketResponse()
        await link.prepare(request)
        if self.playing == 2:
            await link.send_json(error("CAPACITY_REACHED", "Server at capacity: 2/2"))
            await link.close()
            return link
        self.playing += 1
        try:
            await self._episode(link)
        finally:
            self.playing -= 1
        return link

    async def _episode(self, link: web.WebSocketResponse) -> None:
        number = right = 0
        async for message in link:
            told = json.loads(message.data)
            data = told["data"]
            if told["type"] == "reset":
                number, right = data.get("begin", 0) + data["seed"] % 10, 0
                await link.send_json(observation(number, None, done=False))
            elif set(data) != {"message"}:
                await link.send_json(error("VALIDATION_ERROR", "Invalid message"))
            elif data["message"] == "raise":
                await link.send_json(error("EXECUTION_ERROR", "no such move"))
            elif data["message"] == "die":
                assert link._writer is not None
                link._writer.transport.abort()
                return
            elif data["message"] == "hang":
                await asyncio.sleep(5)
            else:
                good = data["message"] == str(number)
                number, right = number + good, right + good
                await link.send_json(observation(number, float(good) / 3, done=right == 3))


def observation(number: int, reward: float | None, *, done: bool) -> dict[str, Any]:
    seen = {"metadata": {}, "text": f"{number} is next"}
    return {"type": "observation", "data": {"observation": seen, "reward": reward, "done": done}}


def error(code: str, message: str) -> dict[str, Any]:
    return {"type": "error", "data": {"message": message, "code": code}}


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.packages)])
async def port(request: pytest.FixtureRequest) -> AsyncIterator[int]:
    if request.param == "real":
        python = await asyncio.to_thread(interpreter, OPENENV)
        async with serving(python, SERVER) as found:
            yield found
    else:
        async with TestServer(StandIn().app(), host="127.0.0.1") as server:
            assert server.port is not None
            yield server.port


@asynccontextmanager
async def opened(port: int, **fields: Any) -> AsyncIterator[Any]:
    source = {"serviceRef": {"name": "localhost", "port": port}, **fields}
    spec = Taskset.model_validate({"seed": 1, "size": 3, "openEnv": source})
    environment = open_environment(spec)
    await environment.ready()
    try:
        yield environment
    finally:
        await environment.close()


def counts(chat: Chat) -> str:
    """The number that the observation names, as the server's action takes it."""
    return json.loads(chat[-1]["content"])["text"].split()[0]


async def test_an_episode_is_played_to_its_end_and_its_rewards_add_up(port: int) -> None:
    async with opened(port, resetOptions={"begin": 40}) as environment:
        model = Model(counts)
        reward, talk = await played(environment, model)
    assert reward == pytest.approx(1)
    assert (len(talk.rollout.turns), talk.rollout.stop_reason) == (3, "done")
    first = json.loads(model.heard[0][0][0]["content"])
    assert first["text"] == f"{40 + environment.task(0).data['reset']['seed'] % 10} is next"


async def test_the_model_may_read_one_field_and_write_the_whole_action(port: int) -> None:
    async with opened(port, observationField="text") as environment:
        model = Model(lambda chat: json.dumps({"message": chat[-1]["content"].split()[0]}))
        reward, _ = await played(environment, model)
    assert reward == pytest.approx(1)
    assert model.heard[0][0][0]["content"].endswith("is next")


async def test_the_arguments_of_a_call_are_the_action(port: int) -> None:
    tool = {"type": "function", "function": {"name": "count"}}

    def says(chat: Chat) -> tuple[str, dict[str, Any]]:
        return "count", {"message": counts(chat)}

    async with opened(port, tools=[tool]) as environment:
        model = Model(says)
        reward, _ = await played(environment, model)
    assert reward == pytest.approx(1)
    assert model.heard[0][1]["tools"] == [tool]
    assert model.heard[1][0][-1]["role"] == "tool"


async def test_an_action_that_cannot_be_read_is_told_to_the_model(port: int) -> None:
    async with opened(port, maxTurns=2) as environment:
        model = Model(lambda chat: '{"move": 1}' if len(chat) == 1 else "no number")
        reward, talk = await played(environment, model)
    assert model.heard[1][0][-1]["content"] == "That action is not valid."
    assert (reward, talk.rollout.stop_reason) == (0, "max_steps")


@pytest.mark.parametrize(
    ("action", "cause", "detail"),
    [
        ("die", "Died", "localhost"),
        ("hang", "Timeout", "during a step of the environment"),
        ("raise", "Raised", "EXECUTION_ERROR: no such move"),
    ],
)
async def test_a_server_that_dies_hangs_or_raises_ends_the_rollout_by_name(
    port: int, action: str, cause: str, detail: str
) -> None:
    async with opened(port, timeoutSeconds=2) as environment:
        with pytest.raises(RolloutFailedError) as caught:
            await played(environment, Model(lambda chat: action))
    assert caught.value.cause == cause
    assert detail in caught.value.detail


async def test_more_episodes_than_the_server_takes_wait_for_a_place(port: int) -> None:
    async with opened(port) as environment:
        games = [played(environment, Model(counts), index=i % 3) for i in range(6)]
        rewards = [reward for reward, _ in await asyncio.gather(*games)]
    assert rewards == pytest.approx([1] * 6)


async def test_a_server_that_is_started_again_is_waited_for() -> None:
    port = free_port()
    async with opened(port) as environment:
        game = asyncio.ensure_future(played(environment, Model(counts)))
        await asyncio.sleep(0.3)
        async with TestServer(StandIn().app(), host="127.0.0.1", port=port):
            reward, _ = await game
    assert reward == pytest.approx(1)


@pytest.mark.parametrize("where", ["localhost", "no-such-service"])
async def test_a_server_that_is_not_there_is_named(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name that leads nowhere is not waited for.
    seconds = 0.5 if where == "localhost" else 60
    monkeypatch.setattr(open_env, "REACH_SECONDS", seconds)
    async with opened(1, serviceRef={"name": where, "port": 1}) as environment:
        with pytest.raises(RolloutFailedError, match=f"{where}:1 is not reached"):
            await played(environment, Model(counts))


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ("nonsense", "Malformed"),
        ("[" * 100_000, "Malformed"),
        ('{"type": "observation"}', "Malformed"),
        ('{"type": "observation", "data": {}}', "Malformed"),
        ('{"type": "observation", "data": {"observation": {}, "reward": "1"}}', "Malformed"),
        ("a" * (MOST_MESSAGE_BYTES + 1), "Malformed"),
    ],
)
async def test_a_server_that_is_not_of_the_protocol_ends_the_rollout_by_name(
    answer: str, cause: str
) -> None:
    async def lies(request: web.Request) -> web.WebSocketResponse:
        link = web.WebSocketResponse()
        await link.prepare(request)
        await link.receive()
        await link.send_str(answer)
        await link.receive()
        return link

    app = web.Application()
    app.router.add_get("/ws", lies)
    async with TestServer(app, host="127.0.0.1") as server:
        assert server.port is not None
        async with opened(server.port, timeoutSeconds=5) as environment:
            with pytest.raises(RolloutFailedError) as caught:
                await played(environment, Model(lambda chat: "1"))
    assert caught.value.cause == cause
