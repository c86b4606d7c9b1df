"""The operator's process: one replica, its signals, its probes and its exit code."""

from __future__ import annotations

from espalier.termination import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

import aiohttp

from espalier import process
from espalier.api.exit_codes import FAULT, USER_MISTAKE
from espalier.controllers.peers.importer_client import ImporterClient
from espalier.controllers.peers.sampler_client import RolloutClient
from espalier.controllers.peers.trainer_client import TrainerClient
from espalier.controllers.process.preflight import Preflight
from espalier.controllers.process.replica import Ports, Replica, lease_key
from espalier.controllers.process.settings import OperatorSettings
from espalier.controllers.process.signing_key import SigningKeyError
from espalier.controllers.process.triggers import WATCHED
from espalier.environment import SettingsError
from espalier.kube import heartbeat, informer, queue_metrics
from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.cache import Cache
from espalier.kube.informer import InformerError
from espalier.kube.lease import Election, LeadershipLostError
from espalier.kube.probes import HealthServer
from espalier.kube.queue import WorkQueue
from espalier.podclient import pod_session
from espalier.telemetry import spans
from espalier.telemetry.settings import passed_on

logger = logging.getLogger("espalier.controllers")

# A key that waits this long for a worker shows that the queue is stuck; one that runs this long
# shows that a worker hangs, because every call has a far shorter timeout.
STUCK_SECONDS = 120.0
HUNG_SECONDS = 600.0
# Within terminationGracePeriodSeconds (30): then what still runs is abandoned, and then it is left.
ORDERLY_SECONDS = 20.0
ABANDON_SECONDS = 5.0
# Allocations, less deallocations, between two looks for garbage.
YOUNG_OBJECTS = 5000
# Errors whose message is enough for a remedy; any other is logged with its traceback.
EXPECTED = (LeadershipLostError, SigningKeyError, InformerError)


class OperatorProcess:
    """One replica as a process of the operating system."""

    def __init__(self, settings: OperatorSettings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._replica: Replica | None = None
        self._preflight: Preflight | None = None

    async def run(self) -> None:
        """Until SIGTERM; raises LeadershipLostError when another replica may have taken over."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        health = HealthServer(
            self._settings.health_port,
            live={"queue": self._queue_fault, "worker": self._worker_fault},
            ready={"cache": self._fault, "permissions": self._forbidden},
        )
        async with (
            await KubernetesCluster.connect() as cluster,
            pod_session() as session,
            health,
        ):
            self._replica = self._make(cluster, session)
            heart = asyncio.create_task(heartbeat.beat())
            queue_metrics.QUEUE_AGE.set_function(lambda: self._age(WorkQueue.oldest_wait))
            queue_metrics.WORKER_AGE.set_function(lambda: self._age(WorkQueue.longest_run))
            try:
                await self._until_stopped(asyncio.create_task(self._replica.run()))
            finally:
                heart.cancel()

    def _make(self, cluster: KubernetesCluster, session: aiohttp.ClientSession) -> Replica:
        preflight = self._preflight = Preflight(cluster, self._settings.namespaces)

        async def inform(cache: Cache, stop: asyncio.Event, synced: asyncio.Event) -> None:
            if namespaces := await preflight.begin(stop):
                watching = informer.InformerSettings(namespaces, WATCHED)
                recovery = asyncio.create_task(preflight.recover(stop))
                try:
                    await informer.run(watching, cache, stop, synced, cluster)
                finally:
                    recovery.cancel()

        ports = Ports(
            cluster.fenced,
            inform,
            trainer=lambda key, check: TrainerClient(session, key, check),
            rollouts=lambda key, check: RolloutClient(session, key, check),
            importer=lambda key: ImporterClient(session, key),
            now=_now,
            telemetry=passed_on(os.environ),
        )
        lease = lease_key(self._settings)
        election = Election(cluster, lease, self._settings.identity, clock=_seconds_since_boot)
        return Replica(self._settings, ports, election, self._stop)

    async def _until_stopped(self, replica: asyncio.Task[None]) -> None:
        """Wait for the replica's end; once a stop is requested, for a bounded time."""
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({replica, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for seconds in (ORDERLY_SECONDS, ABANDON_SECONDS):
            done, _ = await asyncio.wait({replica}, timeout=seconds)
            if done:
                if not replica.cancelled():
                    replica.result()
                return
            logger.warning("what runs did not end within %.0f s: it is abandoned", seconds)
            replica.cancel()
        # It was cancelled and still runs. Nothing of this process may outlive its grace period.
        process.end(FAULT)

    def _fault(self) -> str | None:
        """Why the replica is not ready; a standby is ready, because it can take over."""
        replica = self._replica
        waits = replica is not None and replica.leads and not replica.synced.is_set()
        return "waiting for the first lists" if waits else None

    def _forbidden(self) -> str | None:
        """The missing rights or CRDs that only an administrator can provide."""
        replica, preflight = self._replica, self._preflight
        operator = replica.operator if replica else None
        faults = (
            replica.fault if replica else None,
            preflight.fault if preflight else None,
            operator.refusals.forbidden if operator else None,
        )
        return next(filter(None, faults), None)

    def _queue_fault(self) -> str | None:
        waited = self._age(WorkQueue.oldest_wait)
        return f"a key has waited for {waited:.0f} s" if waited > STUCK_SECONDS else None

    def _worker_fault(self) -> str | None:
        runs = self._age(WorkQueue.longest_run)
        return f"a reconciliation runs for {runs:.0f} s" if runs > HUNG_SECONDS else None

    def _age(self, of: Callable[[WorkQueue], float]) -> float:
        operator = self._replica.operator if self._replica else None
        return of(operator.queue) if operator else 0.0


def _seconds_since_boot() -> float:
    """Counts the time in which the machine was suspended, if the system can: the lease ran out."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _collect_seldom() -> None:
    """Look for cyclic garbage among young objects only, and among all of them hardly ever.

    Python looks at all objects whenever they have grown by a quarter: at a start with 10,000
    Checkpoints that was a quarter of the CPU, and what the cache holds is never garbage.
    """
    gc.set_threshold(YOUNG_OBJECTS, 10, 1000)


def main() -> int:
    """Run until SIGTERM; 64 when the environment is wrong, 1 when the process must be restarted."""
    process.configure_logs()
    _collect_seldom()
    try:
        settings = OperatorSettings.read(os.environ)
        spans.start(os.environ, "espalier-operator")
    except SettingsError as error:
        logger.error("%s", error)
        return USER_MISTAKE
    try:
        asyncio.run(OperatorProcess(settings).run())
    except EXPECTED as error:
        logger.error("%s", error)
        return FAULT
    except ExceptionGroup as group:
        expected, others = group.split(EXPECTED)
        if others is not None:
            raise others from None
        logger.error("%s", expected.exceptions if expected else group)
        return FAULT
    finally:
        spans.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
