"""Finds out from Kueue why pods and Jobs are not admitted; asks only while one waits.

Workloads are not watched: a cluster without Kueue does not know them. That something is admitted is
seen at its pod or Job, which are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from espalier.core.pods.queued import Place, Queue, read
from espalier.kube.cluster import HTTP_NOT_FOUND, Cluster, ClusterError

logger = logging.getLogger(__name__)

LIST_SECONDS = 5.0
UNHEARD = Queue()


class Queues:
    """By namespace, what waits in queues of Kueue, from the last list of its Workloads."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._asked: dict[str, float] = {}
        self._found: dict[str, Queue] = {}

    async def ask(self, namespace: str, places: Iterable[Place | None]) -> float | None:
        """Learn why something waits, if it does; seconds until it is to be asked again."""
        if not any(places):
            return None
        now = asyncio.get_running_loop().time()
        asked = self._asked.get(namespace)
        if asked is None or now - asked >= LIST_SECONDS / 2:
            # Before the call: others who ask meanwhile get its answer with their next pass.
            self._asked[namespace] = now
            await self._list(namespace)
        return LIST_SECONDS

    def of(self, namespace: str) -> Queue:
        """What was last said of what waits."""
        return self._found.get(namespace, UNHEARD)

    async def _list(self, namespace: str) -> None:
        try:
            self._found[namespace] = Queue(read(await self._cluster.list("Workload", namespace)))
        except ClusterError as error:
            if error.status == HTTP_NOT_FOUND:
                self._found[namespace] = Queue(known=False)
                return
            # A missing explanation must not fail the pass; the preflight reports the missing right.
            logger.warning("Workloads in %s not listed: %s", namespace, error)
