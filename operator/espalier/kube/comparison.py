"""Compares the cache with a list, so that a deletion that no watch reported is noticed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from espalier.kube import queue_metrics
from espalier.kube.cache import Cache
from espalier.kube.cluster import Cluster, ClusterError
from espalier.kube.objects import Body, Key, key_of, kind_of, without_managers

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2.0


class InformerError(Exception):
    """The cache could not be made equal to the API server."""


@dataclass(frozen=True)
class Scope:
    """One watch: a kind in a namespace, or in all when None."""

    kind: str
    namespace: str | None

    def __str__(self) -> str:
        where = f"namespace {self.namespace}" if self.namespace else "all namespaces"
        return f"{kind_of(self.kind).plural} in {where}"


class Comparison:
    """Compares a scope whenever its watch begins after a list, and all scopes now and then.

    A list taken after the watch began is complete: what is deleted later, the watch reports.
    """

    def __init__(
        self,
        scopes: frozenset[Scope],
        labels: Mapping[str, Mapping[str, str]],
        cache: Cache,
        cluster: Cluster,
    ) -> None:
        self.scopes = scopes
        self._labels = labels
        self._cache = cache
        self._cluster = cluster
        self._listed: set[Scope] = set()
        self._due: asyncio.Queue[Scope] = asyncio.Queue()
        # What is in the queue, so that nothing is in it twice: it holds each scope at most.
        self._queued: set[Scope] = set()
        self._compared: set[Scope] = set()

    def listing(self, scope: Scope) -> None:
        """A list of the scope begins."""
        queue_metrics.WATCH_LISTS.labels(kind=scope.kind).inc()
        self._listed.add(scope)

    def watching(self, scope: Scope) -> None:
        """A watch of the scope begins."""
        if scope in self._listed:
            self._listed.discard(scope)
            self._put(scope)

    async def run(self, ready: asyncio.Event, every_seconds: float, ready_seconds: float) -> None:
        """Compare for ever; ``ready`` is set once all are compared, else InformerError."""
        try:
            async with asyncio.timeout(ready_seconds):
                while self._compared != self.scopes:
                    await self._next()
        except TimeoutError:
            missing = ", ".join(sorted(str(scope) for scope in self.scopes - self._compared))
            raise InformerError(
                f"not in sync within {ready_seconds:.0f} s: {missing}. Are the CRDs installed, and "
                "may this service account list and watch them?"
            ) from None
        ready.set()
        while True:
            try:
                async with asyncio.timeout(every_seconds):
                    while True:
                        await self._next()
            except TimeoutError:
                for scope in self.scopes:
                    self._put(scope)

    def _put(self, scope: Scope) -> None:
        if scope not in self._queued:
            self._queued.add(scope)
            self._due.put_nowait(scope)

    async def _next(self) -> None:
        scope = await self._due.get()
        self._queued.discard(scope)
        await self._try(scope)

    async def _try(self, scope: Scope) -> None:
        try:
            await self._compare(scope)
        except ClusterError as error:
            seconds = max(RETRY_SECONDS, error.retry_after)
            logger.warning("comparing %s: %s; again in %.0f s", scope, error, seconds)
            asyncio.get_running_loop().call_later(seconds, self._put, scope)

    async def _compare(self, scope: Scope) -> None:
        before = {
            key: self._cache.version(key) for key in self._cache.keys(scope.kind, scope.namespace)
        }
        present: set[Key] = set()

        def take(body: Body) -> None:
            present.add(key_of(scope.kind, body))
            self._cache.put(scope.kind, without_managers(body))

        await self._cluster.each(scope.kind, scope.namespace, take, self._labels[scope.kind])
        for key, held in before.items():
            # One that changed meanwhile is newer than the list.
            if key not in present and self._cache.version(key) == held:
                queue_metrics.MISSED_DELETES.labels(kind=scope.kind).inc()
                logger.info("%s was deleted unseen", key)
                self._cache.drop(key)
        self._compared.add(scope)
        if all(s in self._compared for s in self.scopes if s.kind == scope.kind):
            self._cache.mark_synced(scope.kind)
