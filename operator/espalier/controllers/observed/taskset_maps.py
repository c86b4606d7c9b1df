"""Checks the ConfigMap of a run's tasks before a runner starts, which would only wait for it.

A user's ConfigMap carries no label of ours and is not watched; it is read periodically.
"""

from __future__ import annotations

import asyncio

from espalier.api.trainingrun import TrainingRun
from espalier.controllers.peers.samplers import EARLY_SECONDS
from espalier.core.pods.pods import JobState
from espalier.core.run.taskset_map import missing
from espalier.kube.cluster import Cluster
from espalier.kube.objects import ObjectKey

# Seconds between two reads: while something is wrong, and while nothing is.
WRONG_SECONDS = 5.0
RIGHT_SECONDS = 60.0


class Tasksets:
    """Remembers what was wrong with each run's ConfigMap when it was last read."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        # By run: the ConfigMap and key that it named, when that was read, and what was wrong.
        self._read: dict[ObjectKey, tuple[tuple[str, str], float, str]] = {}

    async def look(self, run: TrainingRun, runner: JobState | None) -> tuple[str, float | None]:
        """What is wrong (empty: nothing), and in how many seconds to read again (None: never).

        A runner that is there has its tasks, or says itself what is wrong with them.
        """
        key = ObjectKey("TrainingRun", run.metadata.namespace, run.metadata.name)
        named = run.spec.taskset.config_map if run.spec.taskset else None
        if named is None or runner is not None or run.spec.driver != "Runner":
            self._read.pop(key, None)
            return "", None
        now, asked = asyncio.get_running_loop().time(), (named.name, named.key)
        last = self._read.get(key)
        if last is not None and last[0] == asked:
            left = (WRONG_SECONDS if last[2] else RIGHT_SECONDS) - (now - last[1])
            if left > EARLY_SECONDS:
                return last[2], left if last[2] else None
        body = await self._cluster.get(ObjectKey("ConfigMap", key.namespace, named.name))
        wrong = missing(named, body)
        self._read[key] = (asked, now, wrong)
        return wrong, WRONG_SECONDS if wrong else None

    def forget(self, run: ObjectKey) -> None:
        """The run is gone."""
        self._read.pop(run, None)
