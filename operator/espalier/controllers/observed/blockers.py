"""Finds out from Events why children are stuck; lists Events only while one is stuck.

Events are not watched, because there are far too many. While a child is stuck, the Warnings about
its kind are listed, at a bounded rate for each namespace.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping

from espalier.controllers.peers.samplers import EARLY_SECONDS
from espalier.core.pods.blockers import Blocker, by_uid
from espalier.kube.cluster import Cluster, ClusterError
from espalier.kube.objects import ObjectKey

logger = logging.getLogger(__name__)

# A child without progress for less than this is just starting.
PATIENCE_SECONDS = 5.0
LIST_SECONDS = 15.0


class Blockers:
    """By uid, what blocks an object, from the last list of Warnings."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        # By the object that asks: since when each of its children makes no progress.
        self._since: dict[ObjectKey, dict[str, float]] = {}
        self._listed: dict[tuple[str, str], float] = {}
        self._found: dict[tuple[str, str], Mapping[str, Blocker]] = {}

    async def ask(self, owner: ObjectKey, silent: Mapping[str, Collection[str]]) -> float | None:
        """Learn what blocks children (their uids, by kind) that are stuck without a reason.

        ``silent`` replaces what the owner asked before. Returns the seconds until it should ask
        again, None if nothing is silent.
        """
        now = asyncio.get_running_loop().time()
        before = self._since.pop(owner, {})
        since = {uid: before.get(uid, now) for uids in silent.values() for uid in uids}
        if not since:
            return None
        self._since[owner] = since
        due = [
            kind
            for kind, uids in silent.items()
            if any(now - since[uid] >= PATIENCE_SECONDS - EARLY_SECONDS for uid in uids)
        ]
        for kind in due:
            await self._list(owner.namespace, kind, now)
        return LIST_SECONDS if due else PATIENCE_SECONDS

    def of(self, namespace: str, kind: str) -> Mapping[str, Blocker]:
        """The blockers of a kind's objects from a recent list of Events, by uid."""
        age = asyncio.get_running_loop().time() - self._listed.get((namespace, kind), 0.0)
        return self._found.get((namespace, kind), {}) if age < 2 * LIST_SECONDS else {}

    def forget(self, owner: ObjectKey) -> None:
        """The object is gone."""
        self._since.pop(owner, None)

    async def _list(self, namespace: str, kind: str, now: float) -> None:
        asked = self._listed.get((namespace, kind))
        if asked is not None and now - asked < LIST_SECONDS / 2:
            return
        # Before the call: others who ask meanwhile get its answer with their next pass.
        self._listed[namespace, kind] = now
        fields = {"involvedObject.kind": kind, "type": "Warning"}
        try:
            events = await self._cluster.list("Event", namespace, fields=fields)
        except ClusterError as error:
            # A missing explanation must not fail the pass; the preflight reports the missing right.
            logger.warning("events about %s in %s not listed: %s", kind, namespace, error)
            return
        self._found[namespace, kind] = by_uid(kind, events)
