"""Checks the ConfigMaps that a run's runner mounts: before it starts, as it would only wait.

A user's ConfigMap carries no label of ours and is not watched; it is read periodically.
"""

from __future__ import annotations

import asyncio

from espalier.api.trainingrun import TrainingRun
from espalier.controllers.peers.samplers import EARLY_SECONDS
from espalier.core.pods.pods import JobState
from espalier.core.run.runner_needs import Lack, MapKey, map_keys, missing
from espalier.kube.cluster import Cluster
from espalier.kube.objects import ObjectKey

# Seconds between two reads: while something is wrong, and while nothing is.
WRONG_SECONDS = 5.0
RIGHT_SECONDS = 60.0


class ConfigMaps:
    """Remembers what of each run's ConfigMaps was not there when they were last read."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        # By run: the keys that it named, when they were looked for, and what was not there.
        self._read: dict[ObjectKey, tuple[tuple[MapKey, ...], float, Lack | None]] = {}

    async def look(
        self, run: TrainingRun, runner: JobState | None
    ) -> tuple[Lack | None, float | None]:
        """What is not there, and in how many seconds to look again (None: never).

        A runner that is there has what it mounts, or says itself what is wrong with it.
        """
        key = ObjectKey("TrainingRun", run.metadata.namespace, run.metadata.name)
        wanted = map_keys(run.spec)
        if not wanted or runner is not None:
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

    async def _lack(self, namespace: str, wanted: tuple[MapKey, ...]) -> Lack | None:
        """The first that is not there."""
        bodies = {
            name: await self._cluster.get(ObjectKey("ConfigMap", namespace, name))
            for name in dict.fromkeys(one.name for one in wanted)
        }
        lacks = (missing(one, bodies[one.name]) for one in wanted)
        return next((lack for lack in lacks if lack is not None), None)

    def forget(self, run: ObjectKey) -> None:
        """The run is gone."""
        self._read.pop(run, None)
