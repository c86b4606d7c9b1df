"""One life of an operator's process: every step it takes is counted, and it can end at any of them.

A step is what a task does between two awaits. A dead life takes no step that anyone could see: what
it had sent is under way, all else is lost. A frozen life (SIGSTOP) takes its next step when thawed.
"""

from __future__ import annotations

import asyncio
import contextvars
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

LIFE: contextvars.ContextVar[Life | None] = contextvars.ContextVar("life", default=None)


class CrashError(BaseException):
    """The operator's process is gone."""


class Life:
    """Dies at step ``kill_at`` (1 is the first); ``witness`` is called at every step."""

    def __init__(self, kill_at: int | None = None, name: str = "operator-0") -> None:
        self.kill_at = kill_at
        self.name = name
        self.steps = 0
        self.sent = 0
        self.dead = False
        self.witness: Callable[[], None] = lambda: None
        self.on_death: list[Callable[[], None]] = []
        self.thawed = asyncio.Event()
        self.thawed.set()

    @property
    def frozen(self) -> bool:
        return not self.thawed.is_set()

    def step(self) -> None:
        if self.dead:
            return
        self.steps += 1
        self.witness()
        if self.steps == self.kill_at:
            self.die()

    def die(self) -> None:
        if not self.dead:
            self.dead = True
            self.thawed.set()
            for callback in self.on_death:
                callback()

    def begin(self, main: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run the process; all tasks that it starts belong to this life."""
        context = contextvars.copy_context()
        context.run(LIFE.set, self)
        return asyncio.get_running_loop().create_task(main, context=context)


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Let every task of a life run under its control."""

    def make(
        loop: asyncio.AbstractEventLoop,
        coroutine: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        life = (context or contextvars.copy_context()).get(LIFE)
        if life is None:
            return asyncio.Task(coroutine, loop=loop, context=context)
        task = asyncio.Task(_live(life, coroutine), loop=loop, context=context)
        # One that is cancelled before its first step would complain that it never ran.
        task.add_done_callback(lambda _: coroutine.close())
        return task

    loop.set_task_factory(make)


async def _live(life: Life, coroutine: Coroutine[Any, Any, Any]) -> Any:
    return await _stepwise(life, coroutine)


@types.coroutine
def _stepwise(life: Life, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    value: Any = None
    error: BaseException | None = None
    while True:
        while life.frozen:
            try:
                yield from life.thawed.wait().__await__()
            except asyncio.CancelledError as cancelled:
                error = cancelled
        life.step()
        try:
            awaited = coroutine.send(value) if error is None else coroutine.throw(error)
        except StopIteration as end:
            return end.value
        value, error = None, None
        try:
            value = yield awaited
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as raised:
            error = raised
