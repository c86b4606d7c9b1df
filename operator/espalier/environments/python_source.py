"""A user's own tasks and rollout function, played by a host in a container without any token."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from espalier.api.run.taskset import Taskset
from espalier.client.completion import Completion
from espalier.client.errors import ConfigurationError, InvalidRequestError
from espalier.environments import host
from espalier.environments.digest import taskset_digest
from espalier.environments.errors import RolloutFailedError, invalid
from espalier.environments.host_link import HostLink, Patience
from espalier.environments.tasks import Message, Task, rollout_seed, within
from espalier.loop.session import PromptTooLongError, Session

SOCKET = "ESPALIER_HOST_SOCKET"
MOST_ID_CHARACTERS, MOST_MESSAGES, MOST_METADATA_BYTES = 200, 1024, 65536
_ROLES = ("system", "user", "assistant", "tool")
_REASON_CHARACTERS = 64
# Where functions are played that cannot be used, and so where to look.
_IN_THE_IMAGE = (
    "Mend tasks and rollout, or name others; the log of the container environment has it all, and "
    "the image needs python3 of 3.9"
)
_HERE = (
    "Mend tasks and rollout, or name others. Here they run in the working directory, by the Python "
    "of espalier: go to the directory of the image's modules, and install what they import"
)


@dataclass(frozen=True)
class Functions:
    """What a host plays, and for whom.

    ``field`` of the taskset names it, ``name`` is part of the tasks' ids; ``options`` go to the
    function that makes tasks, where it is ours.
    """

    field: str
    name: str
    image: str
    tasks: str
    rollout: str
    most_turns: int
    timeout_seconds: int
    options: dict[str, Any] | None = None

    @classmethod
    def of(cls, spec: Taskset) -> Functions:
        """Of a taskset with an image of the user's."""
        if (own := spec.python) is not None:
            return cls(
                "taskset.python",
                f"python/{own.tasks}",
                own.image,
                own.tasks,
                own.rollout,
                own.max_turns,
                own.timeout_seconds,
            )
        if (given := spec.verifiers) is not None:
            return cls(
                "taskset.verifiers",
                f"verifiers/{given.id}",
                given.image,
                "verifiers_host:tasks",
                "verifiers_host:rollout",
                1,
                given.timeout_seconds,
                {"id": given.id, "config": given.config or {}},
            )
        raise invalid("taskset names no image that plays it", "Set taskset.python or verifiers")


class PythonEnvironment:
    """Rollouts that functions in the user's image play.

    Args:
        spec: the run's taskset.
        socket: where the host of another container connects.
        command: starts a host here where there is no other container: for previews.
        scratch: the socket's directory, if it goes when this closes.
        patience: with the host.
    """

    def __init__(
        self,
        spec: Taskset,
        *,
        socket: Path,
        command: Sequence[str] = (),
        scratch: tempfile.TemporaryDirectory[str] | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._scratch = scratch
        self._spec = spec
        self._functions = functions = Functions.of(spec)
        self._command = command
        opening = {
            "tasks_function": functions.tasks,
            "rollout_function": functions.rollout,
            "options": functions.options,
            "seed": spec.seed,
            "size": spec.size,
        }
        self._remedy = _HERE if command else _IN_THE_IMAGE
        self._link = HostLink(socket, functions.field, self._remedy, opening, patience)
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[Task] = []
        self._places: dict[str, int] = {}

    @property
    def size(self) -> int:
        """The tasks that the function gave, at most ``spec.size`` of them."""
        return len(self._tasks)

    @property
    def digest(self) -> str:
        """Of all tasks, and of the image and functions that play them."""
        told = ([task.id, task.data] for task in self._tasks)
        return taskset_digest([asdict(self._functions), *told])

    @property
    def timeout_seconds(self) -> float:
        """Of one rollout."""
        return self._functions.timeout_seconds

    async def ready(self) -> dict[str, Any]:
        """Waits for the host and takes its tasks.

        Raises:
            UserError: ``TasksetInvalid``: there is no host, or its tasks cannot be used.
        """
        await self._link.listen()
        if self._command:
            self._process = await asyncio.create_subprocess_exec(*self._command)
        try:
            given = await self._link.tasks()
        except RolloutFailedError as error:
            raise invalid(f"{self._functions.field}: {error.detail}", self._remedy) from error
        self._tasks = _tasks(self._functions, given)
        self._places = {task.id: place for place, task in enumerate(self._tasks)}
        return {"image": self._functions.image}

    async def close(self) -> None:
        """Ends the connection, and so the host."""
        await self._link.close()
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()
        if self._scratch is not None:
            self._scratch.cleanup()

    def task(self, index: int) -> Task:
        """A task as the function gave it."""
        return self._tasks[within(index, self.size)]

    async def rollout(self, task: Task, session: Session) -> float | None:
        """Plays it on the host; every turn is sampled here."""
        number = session.rollout.rollout_idx
        seed = rollout_seed(self._spec.seed, task.id, number)
        turns = _Turns(session, self._functions.most_turns)
        facts = {"seed": seed, "rollout_index": number}
        with session.phase("the user's rollout"):
            said = await self._link.play(self._places[task.id], facts, turns.answer)
        return _ended(said["ended"], session)


class _Turns:
    """Answers a rollout's requests for turns, at most so many."""

    def __init__(self, session: Session, most: int) -> None:
        self._session = session
        self._left = most

    async def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """The turn, or in words why there is none: that the request was wrong, for one.

        Raises:
            RolloutFailedError: the request is not of the protocol.
            GatewayError: the gateway cannot answer.
        """
        messages, sampling = message.get("messages"), message.get("sampling")
        if message["turn"] not in ("say", "sample") or not isinstance(sampling, dict):
            raise RolloutFailedError("Malformed", "a request for a turn is not of the protocol")
        if problem := _problem(messages):
            return {"error": problem}
        if self._left < 1:
            self._session.stop("max_steps")
            return {"error": "the rollout's turns (maxTurns) are spent"}
        self._left -= 1
        tools = message.get("tools") or ()
        if not isinstance(tools, list | tuple) or not all(isinstance(t, dict) for t in tools):
            return {"error": "tools is no list of objects in OpenAI's form"}
        self._session.tools = tools
        try:
            if message["turn"] == "say":
                turn = await self._session.say(*(messages or ()), **sampling)
            else:
                turn = await self._session.sample(messages or (), **sampling)
        except (PromptTooLongError, InvalidRequestError, ConfigurationError, TypeError) as error:
            return {"error": str(error)}
        return {"completion": _shown(turn)}


def _shown(turn: Completion) -> dict[str, Any]:
    return {
        "text": turn.text,
        "tool_calls": list(turn.tool_calls),
        "reasoning": turn.reasoning,
        "finish_reason": turn.finish_reason,
    }


def _problem(messages: Any) -> str:
    """What is wrong with a chat that the user's function wrote; empty if nothing is."""
    if not isinstance(messages, list) or not 0 < len(messages) <= MOST_MESSAGES:
        return f"messages: give from 1 to {MOST_MESSAGES}"
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            return f"messages[{place}].role: is none of {', '.join(_ROLES)}"
        if not isinstance(message.get("content") or "", str):
            return f"messages[{place}].content: is no text"
    return ""


def _ended(said: Any, session: Session) -> float | None:
    if not isinstance(said, dict):
        raise RolloutFailedError("Malformed", "the end of a rollout is not of the protocol")
    metadata, reason = said.get("metadata"), said.get("stop")
    if isinstance(metadata, dict) and len(json.dumps(metadata)) <= MOST_METADATA_BYTES:
        session.metadata.update(metadata)
    else:
        raise RolloutFailedError("Malformed", f"metadata of more than {MOST_METADATA_BYTES} bytes")
    if isinstance(reason, str) and reason:
        session.stop(reason[:_REASON_CHARACTERS])
    # Whatever it is: ``play`` takes finite numbers alone.
    reward: float | None = said.get("reward")
    return reward


def _tasks(functions: Functions, given: Sequence[Any]) -> list[Task]:
    """The tasks with their ids, which are the user's or count up."""
    field = f"{functions.field}: {functions.tasks}"
    if not given:
        raise invalid(f"{field} gave no tasks", "Give at least one for every seed")
    found: dict[str, Task] = {}
    for place, data in enumerate(given):
        if not isinstance(data, dict):
            raise invalid(f"{field} task {place} is no object", "Give each task as a dict")
        own = data.get("id", place)
        if not isinstance(own, str | int) or not 0 < len(str(own)) <= MOST_ID_CHARACTERS:
            raise invalid(
                f"{field} id of task {place} is no text of 1 to {MOST_ID_CHARACTERS} characters",
                "Give it another, or none",
            )
        name = f"{functions.name}/{own}"
        if name in found:
            raise invalid(f"{field} two tasks have the id {own}", "Give each its own id, or none")
        prompt = data.get("prompt")
        shown = (Message("user", prompt),) if isinstance(prompt, str) else ()
        found[name] = Task(name, shown, data)
    return [*found.values()]


def open_python(spec: Taskset, evaluation: str = "") -> PythonEnvironment:
    """With the host of the pod's other container: the run's own, or that of an evaluation.

    Raises:
        UserError: this process has none.
    """
    path = os.environ.get(SOCKET)
    if not path:
        functions = Functions.of(spec)
        raise invalid(
            f"{functions.field}: {functions.image} runs beside the runner, and here it does not",
            "Run it in a cluster; `espalier taskset preview` plays its modules on this machine",
        )
    socket = Path(path)
    if evaluation:
        place = socket.parent
        socket = place.with_name(f"{place.name}-{evaluation}") / socket.name
    return PythonEnvironment(spec, socket=socket)


def here(spec: Taskset) -> PythonEnvironment:
    """With a host that is started on this machine, in the working directory; for previews."""
    scratch = tempfile.TemporaryDirectory(prefix="espalier-")
    path = Path(scratch.name) / "host.sock"
    command = (sys.executable, str(Path(host.__file__)), str(path))
    return PythonEnvironment(spec, socket=path, command=command, scratch=scratch)
