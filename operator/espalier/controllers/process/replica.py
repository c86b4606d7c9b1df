"""One replica of the operator: a standby until it leads, then it watches and reconciles.

The order of an end is: no new reconciliation, those that run finish or are abandoned, the watches
end, and only then the lease is released, which is kept until all that has happened.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from espalier.backoff import Backoff
from espalier.controllers.peers.importer_client import Importer
from espalier.controllers.peers.sampler_client import RolloutControl
from espalier.controllers.peers.trainer_client import Trainer
from espalier.controllers.process.operator import Operator
from espalier.controllers.process.refusals import with_remedy
from espalier.controllers.process.settings import OperatorSettings
from espalier.controllers.process.signing_key import SigningKeys
from espalier.core.manifests.installation import KEYS_FILE, ChildSettings
from espalier.identity import Signer
from espalier.kube.cache import Cache
from espalier.kube.cluster import HTTP_FORBIDDEN, BeforeWrite, Cluster, ClusterError
from espalier.kube.lease import Election
from espalier.kube.objects import ObjectKey

logger = logging.getLogger(__name__)

LEASE = "espalier-operator"
# Kinds with thousands of objects.
MANY = ("Checkpoint",)
RELEASE_SECONDS = 3.0
DAY_SECONDS = 86_400.0

# Keeps a cache equal to the API server until the first event; the second is set once it is.
Inform = Callable[[Cache, asyncio.Event, asyncio.Event], Awaitable[None]]


@dataclass(frozen=True)
class Ports:
    """The edges of a replica; trainers and rollouts are called with the signer.

    Each port that writes is made with what must be asked before a write. ``telemetry``: variables
    by which the pods of models record spans.
    """

    cluster: Callable[[BeforeWrite], Cluster]
    inform: Inform
    trainer: Callable[[Signer, BeforeWrite], Trainer]
    rollouts: Callable[[Signer, BeforeWrite], RolloutControl]
    importer: Callable[[Signer], Importer]
    now: Callable[[], str]
    telemetry: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Replica:
    """``stop`` ends it in order; ``leads``, ``synced`` and ``operator`` show how far it is."""

    settings: OperatorSettings
    ports: Ports
    election: Election
    stop: asyncio.Event
    leads: bool = False
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    operator: Operator | None = None
    key_fault: str | None = None

    @property
    def fault(self) -> str | None:
        """What an administrator must grant before this replica can lead, or stand by."""
        refused = self.election.fault or self.key_fault
        return with_remedy(refused) if refused else None

    async def run(self) -> None:
        """Runs until ``stop``; LeadershipLostError when another replica may have taken over."""
        if not await self.election.acquire(self.stop):
            return
        self.leads = True
        ended = asyncio.Event()
        keeping = asyncio.create_task(self.election.keep(ended))
        working = asyncio.create_task(self._work())
        try:
            await asyncio.wait({keeping, working}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.stop.set()
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            ended.set()
            await asyncio.gather(keeping, return_exceptions=True)
            self.leads = False
        keeping.result()
        await self._release()
        working.result()

    async def _release(self) -> None:
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await self.election.release()
        except (ClusterError, TimeoutError) as error:
            # The lease expires by itself, only later.
            logger.warning("lease not released: %r", error)

    async def _work(self) -> None:
        check = self.election.check
        cluster = self.ports.cluster(check)
        keys = SigningKeys(
            cluster,
            self.settings.namespace,
            self.settings.namespaces,
            self.settings.rotate_after_days * DAY_SECONDS,
        )
        await self._first_turn(keys)
        cache = Cache(packed=MANY)
        children = ChildSettings(
            self.settings.images,
            KEYS_FILE,
            self.settings.gateway_url,
            hub=self.settings.hub,
            pull_secrets=self.settings.pull_secrets,
            assigned_ids=self.settings.assigned_ids,
            tmp_size=self.settings.tmp_size,
            copy_size=self.settings.copy_size,
            telemetry=self.ports.telemetry,
        )
        operator = Operator(
            cluster,
            cache,
            self.ports.trainer(keys.signer, check),
            self.ports.rollouts(keys.signer, check),
            children,
            importer=self.ports.importer(keys.signer),
            now=self.ports.now,
            identity=self.settings.identity,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._stopping(self._inform(cache)))
            group.create_task(self._stopping(self._reconcile(operator)))
            group.create_task(self._rotate(keys))

    async def _rotate(self, keys: SigningKeys) -> None:
        rotating = asyncio.create_task(keys.run())
        try:
            await self.stop.wait()
        finally:
            rotating.cancel()

    async def _first_turn(self, keys: SigningKeys) -> None:
        """Finds or makes the signing keys; waits while the API server does not answer."""
        backoff, failures = Backoff(), 0
        while True:
            try:
                await keys.turn()
                self.key_fault = None
                return
            except ClusterError as error:
                failures += 1
                self.key_fault = str(error) if error.status == HTTP_FORBIDDEN else None
                seconds = max(error.retry_after, backoff.delay(failures, random.random()))
                logger.warning("signing key: %s; again in %.1f s", error, seconds)
                await asyncio.sleep(seconds)

    async def _inform(self, cache: Cache) -> None:
        await self.ports.inform(cache, self.stop, self.synced)

    async def _reconcile(self, operator: Operator) -> None:
        stopping = asyncio.create_task(self.stop.wait())
        synced = asyncio.create_task(self.synced.wait())
        try:
            await asyncio.wait({stopping, synced}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            synced.cancel()
        if not self.stop.is_set():
            self.operator = operator
            logger.info("reconciling namespaces %s", ", ".join(self.settings.namespaces))
            await operator.run(self.stop)

    async def _stopping(self, part: Coroutine[Any, Any, None]) -> None:
        """End all parts when one ends, for any reason."""
        try:
            await part
        finally:
            self.stop.set()


def lease_key(settings: OperatorSettings) -> ObjectKey:
    """The lease that the replicas of an installation share."""
    return ObjectKey("Lease", settings.namespace, LEASE)
