"""Compares the cache with a list, to find deletes that no watch reported."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from espalier.backoff import Backoff
from espalier.kube import queue_metrics
from espalier.kube.cache import Cache
from espalier.kube.cluster import Cluster, ClusterError
from espalier.kube.objects import Body, ObjectKey, key_of, kind_of, without_managers

logger = logging.getLogger(__name__)

RETRY = Backoff(first=2.0)


@dataclass(frozen=True)
class Scope:
    """One watch: a kind in a namespace, or in all when None."""

    kind: str
    namespace: str | None

    def __str__(self) -> str:
        where = f"namespace {self.namespace}" if self.namespace else "all namespaces"
        return f"{kind_of(self.kind).plural} in {where}"


class Comparison:
    """Compares one scope whenever kopf has listed it, and periodically.

    Our list is younger than kopf's: what is deleted after ours, kopf's watch reports.
    """

    def __init__(
        self, scope: Scope, labels: Mapping[str, str], cache: Cache, cluster: Cluster
    ) -> None:
        self.done = asyncio.Event()
        self._scope = scope
        self._labels = labels
        self._cache = cache
        self._cluster = cluster
        self._due = asyncio.Event()

    def listed(self) -> None:
        """kopf has a list of the scope, and will watch from the version of that list."""
        queue_metrics.WATCH_LISTS.labels(kind=self._scope.kind).inc()
        self._due.set()

    async def run(self, every_seconds: float) -> None:
        """Compare until cancelled; ``done`` is set after the first time."""
        await self._due.wait()
        failures = 0
        while True:
            self._due.clear()
            wait_seconds = every_seconds
            try:
                await self._compare()
                self.done.set()
                failures = 0
            except ClusterError as error:
                failures += 1
                wait_seconds = max(RETRY.delay(failures), error.retry_after)
                logger.warning(
                    "comparing %s: %s; again in %.0f s", self._scope, error, wait_seconds
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds):
                    await self._due.wait()

    async def _compare(self) -> None:
        kind, namespace = self._scope.kind, self._scope.namespace
        before = {key: self._cache.version(key) for key in self._cache.keys(kind, namespace)}
        present: set[ObjectKey] = set()

        def take(body: Body) -> None:
            present.add(key_of(kind, body))
            self._cache.put(kind, without_managers(body))

        await self._cluster.each(kind, namespace, take, self._labels)
        for key, version in before.items():
            # An object that changed meanwhile is newer than the list.
            if key not in present and self._cache.version(key) == version:
                queue_metrics.MISSED_DELETES.labels(kind=kind).inc()
                logger.info("%s was deleted unseen", key)
                self._cache.drop(key)
