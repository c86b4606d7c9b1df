"""The watches of a simulated operator: lists and streams as kopf makes, compared in earnest."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from tests.fakes.cluster import FakeCluster
from tests.simulation.life import Life
from tests.simulation.weather import Weather

from espalier.controllers.process.triggers import WATCHED
from espalier.kube import informer
from espalier.kube.cache import Cache
from espalier.kube.cluster import ClusterError
from espalier.kube.comparison import Comparison, Scope
from espalier.kube.objects import Body

COMPARE_SECONDS = 60.0
READY_SECONDS = 60.0
RECONNECT_SECONDS = 0.1


class Informing:
    """One operator's watches; what they report can be lost, repeated, late and out of order."""

    def __init__(self, source: FakeCluster, reached: Any, life: Life, weather: Weather) -> None:
        self._source = source
        self._reached = reached
        self._life = life
        self._weather = weather

    async def __call__(self, cache: Cache, stop: asyncio.Event, synced: asyncio.Event) -> None:
        comparisons = {
            Scope(kind, None): Comparison(Scope(kind, None), WATCHED[kind], cache, self._reached)
            for kind in sorted(WATCHED)
        }
        parts = [
            stop.wait(),
            informer.synced(comparisons, cache, synced, READY_SECONDS),
            *(comparison.run(COMPARE_SECONDS) for comparison in comparisons.values()),
            *(self._follow(*watched, cache) for watched in comparisons.items()),
        ]
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, scope: Scope, comparison: Comparison, cache: Cache) -> None:
        while True:
            stream = _Stream(scope, cache, self._life, self._weather)
            self._source.watch(stream.offer)
            try:
                for body in await self._reached.list(scope.kind, None, WATCHED[scope.kind]):
                    cache.put(scope.kind, body)
                comparison.listed()
                await stream.expired.wait()
            except ClusterError:
                await asyncio.sleep(RECONNECT_SECONDS)
            finally:
                self._source.unwatch(stream.offer)


class _Stream:
    """One watch, until it expires."""

    def __init__(self, scope: Scope, cache: Cache, life: Life, weather: Weather) -> None:
        self._scope = scope
        self._cache = cache
        self._life = life
        self._weather = weather
        self.expired = asyncio.Event()

    def offer(self, event: str, body: Body) -> None:
        if self._life.dead or body["kind"] != self._scope.kind:
            return
        labels = body["metadata"].get("labels", {})
        if not WATCHED[self._scope.kind].items() <= labels.items():
            return
        loop = asyncio.get_running_loop()
        delays = self._weather.deliveries()
        for delay in delays:
            loop.call_later(delay, self._deliver, event, copy.deepcopy(body))
        if not delays:
            loop.call_later(self._weather.expiry() or 0.0, self.expired.set)

    def _deliver(self, event: str, body: Body) -> None:
        if self._life.dead:
            return
        if self._life.frozen:
            # It waits in the socket.
            asyncio.get_running_loop().call_later(0.5, self._deliver, event, body)
        elif event == "DELETED":
            self._cache.forget(self._scope.kind, body)
        else:
            self._cache.put(self._scope.kind, body)
