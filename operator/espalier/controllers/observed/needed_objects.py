"""Checks what a run's runner mounts and asks: before it starts, as it would only wait or fail.

A user's ConfigMap or Service carries no label of ours and is not watched; it is read periodically.
A judge is a TrainableModel, which is watched.
"""

from __future__ import annotations

import asyncio

from espalier.api.trainingrun import TrainingRun
from espalier.controllers.observed.lister import Lister
from espalier.controllers.peers.samplers import EARLY_SECONDS
from espalier.core.pods.pods import JobState
from espalier.core.run.runner_needs import Lack, MapKey, Peer, absent, map_keys, missing, peers
from espalier.kube.cluster import Cluster
from espalier.kube.objects import ObjectKey

# Seconds between two reads: while something is wrong, and while nothing is.
WRONG_SECONDS = 5.0
RIGHT_SECONDS = 60.0


_Wanted = tuple[tuple[MapKey, ...], tuple[Peer, ...]]


class NeededObjects:
    """Remembers what each run needs and was not there when it was last looked for."""

    def __init__(self, cluster: Cluster, lister: Lister) -> None:
        self._cluster = cluster
        self._lister = lister
        # By run: what it named, when that was looked for, and what was not there.
        self._read: dict[ObjectKey, tuple[_Wanted, float, Lack | None]] = {}

    async def look(
        self, run: TrainingRun, runner: JobState | None
    ) -> tuple[Lack | None, float | None]:
        """What is not there, and in how many seconds to look again (None: never, or when told).

        A runner that is there has what it mounts, or says itself what is wrong with it.
        """
        key = ObjectKey("TrainingRun", run.metadata.namespace, run.metadata.name)
        asked = peers(run.spec)
        judges = [one for one in asked if one.kind == "TrainableModel"]
        wanted = map_keys(run.spec), tuple(one for one in asked if one not in judges)
        if runner is not None or not (any(wanted) or judges):
            self._read.pop(key, None)
            return None, None
        lack, again = await self._looked(key, wanted)
        if lack is None:
            there = self._lister.body
            gone = (j for j in judges if not there(ObjectKey(j.kind, key.namespace, j.name)))
            lack = next((absent(judge) for judge in gone), None)
        return lack, again

    async def _looked(self, key: ObjectKey, wanted: _Wanted) -> tuple[Lack | None, float | None]:
        """What is not there of what is not watched, read again when it is time."""
        if not any(wanted):
            return None, None
        now = asyncio.get_running_loop().time()
        last = self._read.get(key)
        if last is not None and last[0] == wanted:
            left = (WRONG_SECONDS if last[2] else RIGHT_SECONDS) - (now - last[1])
            if left > EARLY_SECONDS:
                return last[2], left if last[2] else None
        lack = await self._lack(key.namespace, wanted)
        self._read[key] = (wanted, now, lack)
        return lack, WRONG_SECONDS if lack else None

    async def _lack(self, namespace: str, wanted: _Wanted) -> Lack | None:
        """The first that is not there."""
        keys, services = wanted
        bodies = {
            name: await self._cluster.get(ObjectKey("ConfigMap", namespace, name))
            for name in dict.fromkeys(one.name for one in keys)
        }
        lacks = (missing(one, bodies[one.name]) for one in keys)
        if lack := next((lack for lack in lacks if lack is not None), None):
            return lack
        for one in services:
            if await self._cluster.get(ObjectKey(one.kind, namespace, one.name)) is None:
                return absent(one)
        return None

    def forget(self, run: ObjectKey) -> None:
        """The run is gone."""
        self._read.pop(run, None)
