"""Plays a user's rollout function in the user's own image. Runs by itself: ``python3 host.py``.

It needs Python 3.9 and nothing else: no package, and nothing of Espalier beside this file. It
connects to the runner through a Unix socket and holds no token. Both sides write one JSON object
a line; ``host_link`` is the other side, and believes nothing of what is said here.

The user writes::

    def tasks(seed: int, size: int) -> Iterable[dict]     # each may have an "id"
    async def rollout(task: dict, session: Session) -> float
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import socket
import sys
import threading
import time
import traceback
from typing import Any

VERSION = 1
CONNECT_SECONDS = 300.0
_DETAIL_CHARACTERS = 1000
# Begins of the paths of files whose lines say nothing about the user's code.
_OURS = (
    *(os.path.dirname(os.path.abspath(file)) + os.sep for file in (__file__, importlib.__file__)),  # noqa: PTH100, PTH120
    "<frozen importlib",
)


class SessionError(Exception):
    """The turn could not be sampled: turns are spent, the context is full, or it was refused."""


class Turn:
    """What the model said."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.text: str = given["text"]
        self.tool_calls: list[dict[str, Any]] = given["tool_calls"]
        self.reasoning: str = given["reasoning"]
        self.finish_reason: str = given["finish_reason"]

    @property
    def truncated(self) -> bool:
        """Whether it was cut at the most tokens."""
        return self.finish_reason == "length"


class Session:
    """One rollout: samples turns of the model. ``seed`` is the rollout's own."""

    def __init__(self, link: Link, number: int, opened: dict[str, Any]) -> None:
        self.seed: int = opened["seed"]
        self.rollout_index: int = opened["rollout_index"]
        self.metadata: dict[str, Any] = {}
        self.stop_reason = ""
        self._link = link
        self._number = number

    async def say(self, *messages: Any, **sampling: Any) -> Turn:
        """One turn of a conversation that is kept; a string is a user's message."""
        new = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
        return await self._ask("say", new, sampling)

    async def sample(self, messages: Any, **sampling: Any) -> Turn:
        """One turn that answers exactly these messages."""
        return await self._ask("sample", list(messages), sampling)

    def stop(self, reason: str) -> None:
        """Why the rollout ends where it does."""
        self.stop_reason = reason

    async def _ask(self, how: str, messages: Any, sampling: dict[str, Any]) -> Turn:
        tools = sampling.pop("tools", None)
        asked = {"messages": messages, "sampling": sampling, "tools": tools}
        answer = await self._link.ask(self._number, {"turn": how, **asked})
        if "error" in answer:
            raise SessionError(answer["error"])
        return Turn(answer["completion"])


class Link:
    """The connection to the runner."""

    def __init__(self, connection: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._loop = loop
        self._lock = threading.Lock()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._playing: dict[int, asyncio.Task[None]] = {}
        self._rollout: Any = None
        self._tasks: list[Any] = []

    def listen(self) -> None:
        """In a thread of its own, so that it ends the process whatever the user's code does."""
        with self._connection.makefile("rb") as lines:
            for line in lines:
                self._loop.call_soon_threadsafe(self._take, json.loads(line))
        # The runner has ended, or has given this process up. The kubelet starts another one.
        os._exit(0)

    def say(self, message: dict[str, Any]) -> None:
        """Writes a line."""
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            self._connection.sendall(line)

    async def ask(self, number: int, message: dict[str, Any]) -> dict[str, Any]:
        """What the runner answers to a rollout's request."""
        if number in self._waiting:
            raise SessionError("a rollout samples one turn at a time: await the one before")
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._waiting[number] = future
        try:
            self.say({"rollout": number, **message})
            return await future
        finally:
            self._waiting.pop(number, None)

    def _take(self, message: dict[str, Any]) -> None:
        kind, number = message["kind"], message.get("rollout", 0)
        if kind == "open":
            self._open(message)
        elif kind == "play":
            task = self._loop.create_task(self._play(number, message))
            self._playing[number] = task
            task.add_done_callback(lambda done: self._playing.pop(number, None))
        elif kind == "turn":
            waiting = self._waiting.get(number)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
        elif kind == "cancel":
            playing = self._playing.get(number)
            if playing is not None:
                playing.cancel()
            self.say({"cancelled": number})

    def _open(self, message: dict[str, Any]) -> None:
        try:
            self._rollout = _function("rollout", message["rollout_function"])
            if not inspect.iscoroutinefunction(self._rollout):
                raise TypeError(f"{message['rollout_function']} is no async def function")
            make = _function("tasks", message["tasks_function"])
            self._tasks = []
            # Options are those of our own adapters, not of a user's functions.
            options = [message["options"]] if message["options"] is not None else []
            for task in make(message["seed"], message["size"], *options):
                if len(self._tasks) == message["size"]:
                    break
                self.say({"task": task})
                self._tasks.append(task)
            self.say({"opened": len(self._tasks)})
        except Exception as error:
            self.say({"refused": _told(error)})

    async def _play(self, number: int, message: dict[str, Any]) -> None:
        session = Session(self, number, message)
        try:
            reward = await self._rollout(self._tasks[message["task"]], session)
            ended = {"reward": reward, "metadata": session.metadata, "stop": session.stop_reason}
            self.say({"rollout": number, "ended": ended})
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.say({"rollout": number, "failed": _told(error)})


def _function(field: str, name: str) -> Any:
    module, _, function = name.partition(":")
    found = getattr(importlib.import_module(module), function, None)
    if not callable(found):
        raise TypeError(f"{field}: module {module} has no function {function}")
    return found


def _told(error: BaseException) -> str:
    """An error in one line. The log has the user's lines that led to it, and none of ours."""
    theirs = error.__traceback__
    while theirs is not None and theirs.tb_frame.f_code.co_filename.startswith(_OURS):
        theirs = theirs.tb_next
    if theirs is not None:
        traceback.print_exception(type(error), error, theirs)
    return " ".join(f"{type(error).__name__}: {error}".split())[:_DETAIL_CHARACTERS]


def _connected(path: str) -> socket.socket:
    """The runner may still be starting."""
    give_up = time.monotonic() + CONNECT_SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
            return connection
        except OSError:
            connection.close()
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)


def main(path: str, loop: asyncio.AbstractEventLoop | None = None) -> None:
    """Connects to the runner's socket and serves it until it closes."""
    # Modules of the image's working directory go before those beside this file.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    loop = loop or asyncio.new_event_loop()
    link = Link(_connected(path), loop)
    threading.Thread(target=link.listen, daemon=True).start()
    link.say({"hello": VERSION, "python": sys.version.split()[0]})
    loop.run_forever()


if __name__ == "__main__":
    main(sys.argv[1])
