"""The operator's process: waits to lead, then keeps the cache equal and reconciles."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

import aiohttp

from espalier import identity
from espalier.controllers import signing_key
from espalier.controllers.operator import Operator
from espalier.controllers.rollout_client import RolloutClient
from espalier.controllers.settings import Settings, SettingsError
from espalier.controllers.signing_key import SigningKeyError
from espalier.controllers.trainer_client import TrainerClient
from espalier.controllers.triggers import WATCHED
from espalier.core.manifests.settings import ChildSettings
from espalier.kube import informer, log
from espalier.kube.cache import Cache
from espalier.kube.cluster import KubernetesCluster
from espalier.kube.comparison import InformerError
from espalier.kube.health import HealthServer
from espalier.kube.lease import Election, LeadershipLostError
from espalier.kube.objects import Key

logger = logging.getLogger("espalier.controllers")

LEASE = "espalier-operator"
USER_ERROR = 64
FAULT = 1
# A key that waited this long for a worker means that the queue does not move.
STUCK_SECONDS = 120.0
# Faults that a restart or the message mends; anything else deserves its traceback.
EXPECTED = (LeadershipLostError, SigningKeyError, InformerError)


class Process:
    """One replica: standby until it leads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._leads = False
        self._synced = asyncio.Event()
        self._operator: Operator | None = None

    async def run(self) -> None:
        """Until SIGTERM; raises LeadershipLostError when another replica took over."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        health = HealthServer(
            self._settings.health_port,
            live={"queue": self._queue_fault},
            ready={"cache": self._fault},
        )
        async with await KubernetesCluster.connect() as cluster, health:
            lease = Key("Lease", self._settings.namespace, LEASE)
            election = Election(cluster, lease, self._settings.identity)
            if not await election.acquire(self._stop):
                return
            self._leads = True
            try:
                await self._lead(cluster, election)
            finally:
                self._stop.set()
            await election.release()

    async def _lead(self, cluster: KubernetesCluster, election: Election) -> None:
        private_key = await signing_key.ensure(cluster, self._settings.namespace)
        cache = Cache()
        watching = informer.InformerSettings(self._settings.namespaces, WATCHED)
        children = ChildSettings(
            self._settings.images, identity.public_key(private_key), self._settings.gateway_url
        )
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            operator = Operator(
                cluster,
                cache,
                TrainerClient(session, private_key),
                RolloutClient(session, private_key),
                children,
                now=_now,
                identity=self._settings.identity,
            )
            group.create_task(self._stopping(election.keep(self._stop)))
            group.create_task(
                self._stopping(informer.run(watching, cache, self._stop, self._synced, cluster))
            )
            group.create_task(self._stopping(self._reconcile(operator)))

    async def _reconcile(self, operator: Operator) -> None:
        stopping = asyncio.create_task(self._stop.wait())
        synced = asyncio.create_task(self._synced.wait())
        await asyncio.wait({stopping, synced}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        synced.cancel()
        if not self._stop.is_set():
            self._operator = operator
            logger.info("reconciling namespaces %s", ", ".join(self._settings.namespaces))
            await operator.run(self._stop)

    async def _stopping(self, part: Coroutine[Any, Any, None]) -> None:
        """When one part ends, for whatever reason, all end."""
        try:
            await part
        finally:
            self._stop.set()

    def _fault(self) -> str | None:
        """A standby is ready: it is there to take over."""
        return "waiting for the first lists" if self._leads and not self._synced.is_set() else None

    def _queue_fault(self) -> str | None:
        waited = self._operator.queue.oldest_wait() if self._operator else 0.0
        return f"a key has waited for {waited:.0f} s" if waited > STUCK_SECONDS else None


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def main() -> int:
    """Run until SIGTERM; 64 when the environment is wrong, 1 when the process must be restarted."""
    log.configure()
    try:
        settings = Settings.read(os.environ)
    except SettingsError as error:
        logger.error("%s", error)
        return USER_ERROR
    try:
        asyncio.run(Process(settings).run())
    except EXPECTED as error:
        logger.error("%s", error)
        return FAULT
    except ExceptionGroup as group:
        expected, others = group.split(EXPECTED)
        if others is not None:
            raise others from None
        logger.error("%s", expected.exceptions if expected else group)
        return FAULT
    return 0


if __name__ == "__main__":
    sys.exit(main())
