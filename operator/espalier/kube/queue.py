"""A deduplicating work queue, in the manner of client-go's.

A key waits at most once, never runs twice at the same time, and runs again if it was added while it
ran. Failures are retried with exponential backoff and jitter, per key.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from espalier.backoff import Backoff
from espalier.kube import queue_metrics
from espalier.kube.cluster import ClusterError
from espalier.kube.objects import ObjectKey

logger = logging.getLogger(__name__)

Reconcile = Callable[[ObjectKey], Awaitable[float | None]]


class WorkQueue:
    """Runs ``reconcile(key)`` for added keys; it may return in how many seconds to run again."""

    def __init__(
        self, reconcile: Reconcile, *, workers: int = 4, backoff: Backoff | None = None
    ) -> None:
        self._reconcile = reconcile
        self._workers = workers
        self._backoff = backoff or Backoff()
        self._ready: asyncio.Queue[ObjectKey | None] = asyncio.Queue()
        self._waiting: dict[ObjectKey, float] = {}
        self._running: dict[ObjectKey, float] = {}
        self._dirty: set[ObjectKey] = set()
        self._failures: dict[ObjectKey, int] = {}
        self._timers: dict[ObjectKey, asyncio.TimerHandle] = {}

    def add(self, key: ObjectKey) -> None:
        """Run the key once a worker is free; only once, however often it was added until then."""
        if key in self._running:
            self._dirty.add(key)
        elif key not in self._waiting:
            queue_metrics.QUEUE_ADDS.labels(kind=key.kind).inc()
            self._waiting[key] = asyncio.get_running_loop().time()
            self._ready.put_nowait(key)
            queue_metrics.QUEUE_DEPTH.set(len(self._waiting))

    def add_after(self, key: ObjectKey, seconds: float) -> None:
        """Run the key in this many seconds; of several delays the shortest counts."""
        loop = asyncio.get_running_loop()
        pending = self._timers.get(key)
        if pending is not None:
            if pending.when() <= loop.time() + seconds:
                return
            pending.cancel()
        self._timers[key] = loop.call_later(max(0.0, seconds), self._fire, key)

    @property
    def idle(self) -> bool:
        """Whether nothing waits for a worker or runs; delayed keys do not count."""
        return not self._waiting and not self._running

    def oldest_wait(self) -> float:
        """Seconds that the longest waiting key has waited; 0 when none waits."""
        if not self._waiting:
            return 0.0
        return asyncio.get_running_loop().time() - next(iter(self._waiting.values()))

    def longest_run(self) -> float:
        """Seconds that the reconciliation that began first has run; 0 when none runs."""
        if not self._running:
            return 0.0
        return asyncio.get_running_loop().time() - next(iter(self._running.values()))

    async def run(self, stop: asyncio.Event, *, grace_seconds: float = 10.0) -> None:
        """Work until ``stop``; running passes may finish within the grace, then are cancelled."""
        workers = [asyncio.create_task(self._work()) for _ in range(self._workers)]
        try:
            await stop.wait()
            for timer in self._timers.values():
                timer.cancel()
            for _ in workers:
                self._ready.put_nowait(None)
            await asyncio.wait(workers, timeout=grace_seconds)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    def _fire(self, key: ObjectKey) -> None:
        del self._timers[key]
        self.add(key)

    async def _work(self) -> None:
        while (key := await self._ready.get()) is not None:
            since = self._waiting.pop(key)
            queue_metrics.QUEUE_WAIT.observe(asyncio.get_running_loop().time() - since)
            queue_metrics.QUEUE_DEPTH.set(len(self._waiting))
            self._running[key] = asyncio.get_running_loop().time()
            try:
                await self._run_once(key)
            finally:
                del self._running[key]
            if key in self._dirty:
                self._dirty.discard(key)
                self.add(key)
            # A pass with nothing to do never yields, and the lease must be renewed between ten
            # thousand of them.
            await asyncio.sleep(0)

    async def _run_once(self, key: ObjectKey) -> None:
        clock, result = asyncio.get_running_loop().time, "success"
        begun = clock()
        try:
            again = await self._reconcile(key)
        except Exception as error:
            result = "error"
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            delay = self._backoff.delay(failures, random.random())
            if isinstance(error, ClusterError):
                delay = max(delay, error.retry_after)
            logger.exception(
                "reconciling %s failed; again in %.1f s", key, delay, extra=key.fields()
            )
            queue_metrics.QUEUE_RETRIES.labels(kind=key.kind).inc()
            self.add_after(key, delay)
        else:
            self._failures.pop(key, None)
            if again is not None:
                result = "requeue"
                self.add_after(key, again)
        queue_metrics.RECONCILE_DURATION.labels(kind=key.kind, result=result).observe(
            clock() - begun
        )
        queue_metrics.RECONCILES.labels(kind=key.kind, result=result).inc()
