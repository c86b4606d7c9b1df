"""What lies between one life of the operator and everything that it talks to.

A request that was sent arrives even if its sender dies: the world answers whom it does not know.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from typing import Any

from tests.simulation.life import CrashError, Life
from tests.simulation.weather import Weather

from espalier.kube.cluster import BeforeWrite, always
from espalier.kube.objects import Body, ObjectKey

READS = ("get", "list", "each", "state", "commits", "usage", "progress")
# What the server ends when the caller has gone.
WAITS = ("commits",)


class Network:
    """The way out of one life; ``landed`` counts the effects of all lives."""

    def __init__(self, life: Life, weather: Weather, effect: Callable[[str, Any], None]) -> None:
        self._life = life
        self._weather = weather
        self._effect = effect
        self._waits: set[asyncio.Task[Any]] = set()
        life.on_death.append(self._hang_up)

    def to(self, name: str, target: Any, before_write: BeforeWrite = always) -> Any:
        """``target`` as this life reaches it; ``name`` is cluster, or the role of a pod.

        ``before_write`` is asked ahead of each write, as KubernetesCluster and PeerCalls do.
        """
        network = self

        class Reached:
            def __getattr__(self, verb: str) -> Any:
                method = getattr(target, verb)
                if not _is_async(method):
                    return method
                return network._caller(name, verb, method, before_write)

        return Reached()

    def _caller(self, name: str, verb: str, method: Any, before_write: BeforeWrite) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            if verb not in READS:
                before_write()
            if self._life.dead:
                raise CrashError
            self._life.sent += verb not in READS
            travel = self._travel(name, verb, lambda: method(*args, **kwargs), args)
            answer = asyncio.get_running_loop().create_task(travel, context=contextvars.Context())
            if verb in WAITS:
                self._waits.add(answer)
                answer.add_done_callback(self._waits.discard)
            answer.add_done_callback(_seen)
            result = await asyncio.shield(answer)
            if self._life.dead:
                raise CrashError
            return result

        return call

    async def _travel(self, name: str, verb: str, act: Callable[[], Any], args: Any) -> Any:
        await asyncio.sleep(self._weather.latency())
        fault = self._weather.fault(name, verb)
        if fault is not None and not fault.lands:
            await asyncio.sleep(fault.seconds)
            raise fault.error
        result = await act()
        if verb not in READS:
            self._effect(verb, args)
        await asyncio.sleep(fault.seconds if fault else self._weather.latency())
        if fault is not None:
            raise fault.error
        return result

    def _hang_up(self) -> None:
        for task in self._waits:
            task.cancel()


def _is_async(method: Any) -> bool:
    return inspect.iscoroutinefunction(method)


def _seen(task: asyncio.Task[Any]) -> None:
    """Nobody may be left to look at an answer."""
    if not task.cancelled():
        task.exception()


def target_of(args: tuple[Any, ...]) -> ObjectKey | None:
    """The object that a call on the cluster is about."""
    first = args[0]
    if isinstance(first, ObjectKey):
        return first
    body: Body = args[1]
    return ObjectKey(first, body["metadata"].get("namespace", ""), body["metadata"]["name"])
