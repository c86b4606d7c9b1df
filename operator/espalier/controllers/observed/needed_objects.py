"""Checks what a run's runner mounts and asks: before it starts, as it would only wait or fail.

A user's ConfigMap or Service carries no label of ours and is not watched; it is read periodically.
"""

from __future__ import annotations

import asyncio

from espalier.api.trainingrun import TrainingRun
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

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        # By run: what it named, when that was looked for, and what was not there.
        self._read: dict[ObjectKey, tuple[_Wanted, float, Lack | None]] = {}

    async def look(
        self, run: TrainingRun, runner: JobState | None
    ) -> tuple[Lack | None, float | None]:
        """What is not there, and in how many seconds to look again (None: never).

        A runner that is there has what it mounts, or says itself what is wrong with it.
        """
        key = ObjectKey("TrainingRun", run.metadata.namespace, run.metadata.name)
        wanted = map_keys(run.spec), peers(run.spec)
        if not any(wanted) or runner is not None:
            self._read.pop(key, None)
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
        keys, asked = wanted
        bodies = {
            name: await self._cluster.get(ObjectKey("ConfigMap", namespace, name))
            for name in dict.fromkeys(one.name for one in keys)
        }
        lacks = (missing(one, bodies[one.name]) for one in keys)
        if lack := next((lack for lack in lacks if lack is not None), None):
            return lack
        for one in asked:
            if await self._cluster.get(ObjectKey(one.kind, namespace, one.name)) is None:
                return absent(one)
        return None

    def forget(self, run: ObjectKey) -> None:
        """The run is gone."""
        self._read.pop(run, None)
