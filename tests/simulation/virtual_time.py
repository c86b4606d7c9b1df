"""An event loop whose clock jumps: hours of waiting take no time, in a reproducible order."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from tests.simulation import life

T = TypeVar("T")


class _Jumping(selectors.SelectSelector):
    """Instead of waiting, moves the clock on to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("everything waits and nothing will happen")
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` in virtual time; the same program always runs in the same order."""
    random.seed(0)
    with asyncio.Runner(loop_factory=_loop) as runner:
        return runner.run(main)


def _loop() -> VirtualLoop:
    loop = VirtualLoop()
    life.install(loop)
    return loop
