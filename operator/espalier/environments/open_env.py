"""Episodes of a server of OpenEnv's protocol: one WebSocket connection is one episode.

Every message is a JSON object with ``type`` and ``data``. ``reset`` and ``step`` are answered by
``observation`` with ``{observation, reward, done}``, or by ``error`` with ``{code, message}``. The
package openenv is not needed: its client is half a gigabyte of other things.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import aiohttp

from espalier.api.run.environment_sources import OpenEnv
from espalier.api.run.taskset import Taskset
from espalier.client.completion import Completion
from espalier.environments.conversation import answers, call, parsed, turn
from espalier.environments.digest import taskset_digest
from espalier.environments.errors import RolloutFailedError
from espalier.environments.tasks import Task, system, task_seed, within
from espalier.loop.session import Session

MOST_MESSAGE_BYTES = 1 << 20
# A server plays few episodes at once; the others wait within the rollout's own time.
BUSY_SECONDS = 0.2
# A server that is started again is away for a while, and an attempt may hang on its old address.
REACH_SECONDS, ATTEMPT_SECONDS = 30.0, 5.0
_BUSY = "CAPACITY_REACHED"
_INVALID = "VALIDATION_ERROR"
# Environments seed numpy, which takes 32 bits.
_SEED_BITS = 31


class OpenEnvEnvironment:
    """Episodes by the seed of their reset, which all rollouts of a task have in common."""

    def __init__(self, spec: Taskset, source: OpenEnv) -> None:
        self._spec = spec
        self._source = source
        service = source.service_ref
        self._where = f"{service.name}:{service.port}"
        self._name = f"open-env/{service.name}"
        self._http: aiohttp.ClientSession | None = None

    @property
    def size(self) -> int:
        """As many as are declared."""
        return self._spec.size

    @property
    def digest(self) -> str:
        """Of the source: service, options, seed, size. What the server makes of them is its own."""
        made_by = {"openEnv": self._name, "seed": self._spec.seed, "size": self.size}
        return taskset_digest([made_by, self._source.wire(), self._spec.system_prompt])

    @property
    def timeout_seconds(self) -> float:
        """Of one episode, the wait for a free place on the server included."""
        return self._source.timeout_seconds

    async def ready(self) -> dict[str, Any]:
        """Connections are made by the episodes."""
        self._http = aiohttp.ClientSession()
        return {"service": self._where}

    async def close(self) -> None:
        """Ends connections that are still open."""
        if self._http is not None:
            await self._http.close()

    def task(self, index: int) -> Task:
        """An episode by its seed; the server tells what it begins with."""
        name = f"{self._name}/{within(index, self.size)}"
        seed = task_seed(self._spec.seed, name) % 2**_SEED_BITS
        return Task(
            name,
            system(self._spec),
            {"reset": {"seed": seed, **(self._source.reset_options or {})}},
        )

    async def rollout(self, task: Task, session: Session) -> float | None:
        """Plays an episode; the reward is the sum of its steps', None where none had one.

        An action that the server cannot read is told to the model.
        """
        with session.phase("connecting to the environment"):
            link, observation = await self._begun(task.data["reset"])
        session.tools = self._source.tools or ()
        session.stop("max_steps")
        said: list[Any] = [message.wire() for message in task.messages]
        said.append({"role": "user", "content": self._shown(observation)})
        rewards = _rewards(observation)
        try:
            for _ in range(self._source.max_turns):
                completion = await turn(session, *said)
                if completion is None:
                    break
                with session.phase("a step of the environment"):
                    told = await self._asked(link, "step", self._action(completion))
                if told["type"] == "error":
                    if told["data"].get("code") != _INVALID:
                        raise _raised(told["data"])
                    said = answers(completion, "That action is not valid.")
                    continue
                rewards += _rewards(told["data"])
                if told["data"].get("done"):
                    session.stop("done")
                    break
                said = answers(completion, self._shown(told["data"]))
        finally:
            await link.close()
        session.metadata.update(rewarded_steps=len(rewards))
        return math.fsum(rewards) if rewards else None

    async def _begun(
        self, reset: dict[str, Any]
    ) -> tuple[aiohttp.ClientWebSocketResponse, dict[str, Any]]:
        """A connection and its first observation; waits for a place on a server that is full."""
        while True:
            link = await self._reached()
            try:
                told = await self._asked(link, "reset", reset)
            except BaseException:
                await link.close()
                raise
            if told["type"] == "observation":
                return link, told["data"]
            await link.close()
            if told["data"].get("code") != _BUSY:
                raise _raised(told["data"])
            await asyncio.sleep(BUSY_SECONDS)

    async def _reached(self) -> aiohttp.ClientWebSocketResponse:
        """A connection; a server that is being started again is waited for.

        Raises:
            RolloutFailedError: there is no such name, it is no such server, or it stays away.
        """
        if self._http is None:
            raise RuntimeError("the environment is not open")
        loop = asyncio.get_running_loop()
        give_up = loop.time() + REACH_SECONDS
        while True:
            try:
                async with asyncio.timeout(ATTEMPT_SECONDS):
                    return await self._http.ws_connect(
                        f"ws://{self._where}/ws", max_msg_size=MOST_MESSAGE_BYTES
                    )
            except (aiohttp.ClientError, OSError) as error:
                away = isinstance(error, aiohttp.ClientConnectorError | TimeoutError)
                named = not isinstance(error, aiohttp.ClientConnectorDNSError)
                if not (away and named) or loop.time() >= give_up:
                    said = str(error) or f"no answer within {ATTEMPT_SECONDS:g} s"
                    detail = f"{self._where} is not reached: {said}"
                    raise RolloutFailedError("Died", detail) from error
            await asyncio.sleep(BUSY_SECONDS)

    async def _asked(
        self, link: aiohttp.ClientWebSocketResponse, kind: str, data: dict[str, Any]
    ) -> dict[str, Any]:
        """The server's answer: an observation or an error, with its data.

        Raises:
            RolloutFailedError: the connection ended, or the answer is something else.
        """
        try:
            await link.send_str(json.dumps({"type": kind, "data": data}))
            message = await link.receive()
        except (aiohttp.ClientError, ConnectionError) as error:
            raise RolloutFailedError("Died", f"{self._where} was lost: {error}") from error
        if message.type == aiohttp.WSMsgType.ERROR:
            raise RolloutFailedError("Malformed", f"{self._where}: {message.data}")
        if message.type != aiohttp.WSMsgType.TEXT:
            raise RolloutFailedError("Died", f"{self._where} closed the connection")
        told = _object(message.data)
        if told is None or told.get("type") not in ("observation", "error"):
            raise RolloutFailedError("Malformed", f"{self._where} answered something else")
        if not isinstance(told.get("data"), dict):
            raise RolloutFailedError("Malformed", f"{self._where} answered without data")
        return told

    def _action(self, completion: Completion) -> dict[str, Any]:
        """What the model did: a call of a tool, a JSON object, or a text."""
        tools = self._source.tools or ()
        names = [str((tool.get("function") or {}).get("name")) for tool in tools]
        if made := call(completion, names):
            name, arguments = made
            if self._source.tool_action == "Arguments":
                return arguments
            return {"type": "call_tool", "tool_name": name, "arguments": arguments}
        whole = parsed(completion.text)
        return whole if whole is not None else {self._source.action_field: completion.text}

    def _shown(self, told: dict[str, Any]) -> str:
        """The observation as the model reads it."""
        observation = told.get("observation")
        if not isinstance(observation, dict):
            raise RolloutFailedError("Malformed", f"{self._where} told no observation")
        field = self._source.observation_field
        if field is None:
            return json.dumps(observation, sort_keys=True, ensure_ascii=False)
        if field not in observation:
            known = ", ".join(sorted(observation)) or "none"
            raise RolloutFailedError(
                "Malformed", f"openEnv.observationField: there is no {field} among {known}"
            )
        shown = observation[field]
        return shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)


def _rewards(told: dict[str, Any]) -> list[float]:
    reward = told.get("reward")
    if reward is None:
        return []
    if not isinstance(reward, bool | int | float):
        raise RolloutFailedError("Malformed", f"a reward is {reward!r:.80}, not a number")
    return [float(reward)]


def _raised(data: dict[str, Any]) -> RolloutFailedError:
    return RolloutFailedError("Raised", f"{data.get('code')}: {data.get('message')}")


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
