"""Leader election by a Lease of coordination.k8s.io, with client-go's timing.

A replica that loses the lease must end its process: what it was doing cannot be un-led.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from espalier.kube import metrics
from espalier.kube.cluster import Cluster, ClusterError
from espalier.kube.objects import Body, Key

logger = logging.getLogger(__name__)


class LeadershipLostError(Exception):
    """The lease could not be renewed in time, or another replica holds it."""


@dataclass(frozen=True)
class LeaseTiming:
    """Seconds after which others may take a lease, its holder gives up, and between tries."""

    duration: int = 15
    deadline: float = 10.0
    retry: float = 2.0


class Election:
    """One replica's part in the election; ``identity`` is unique, such as the name of its pod."""

    def __init__(
        self, cluster: Cluster, lease: Key, identity: str, timing: LeaseTiming | None = None
    ) -> None:
        self._cluster = cluster
        self._lease = lease
        self._identity = identity
        self._timing = timing or LeaseTiming()
        # Clocks of two nodes differ: a lease's age is counted from when this replica saw it change.
        self._seen = ("", 0.0)

    async def acquire(self, stop: asyncio.Event) -> bool:
        """Wait until this replica leads; False if ``stop`` is set first."""
        while not stop.is_set():
            try:
                if await self._take():
                    logger.info("%s leads by lease %s", self._identity, self._lease)
                    metrics.LEADER.set(1)
                    return True
            except ClusterError as error:
                logger.warning("lease %s: %s", self._lease, error)
            await _wait(stop, self._timing.retry)
        return False

    async def keep(self, stop: asyncio.Event) -> None:
        """Renew until ``stop``; LeadershipLostError when the lease is lost."""
        clock = asyncio.get_running_loop().time
        renewed = clock()
        try:
            while not stop.is_set():
                await _wait(stop, self._timing.retry)
                started = clock()
                if await self._renew(renewed + self._timing.deadline - started):
                    renewed = started
                elif clock() - renewed >= self._timing.deadline:
                    raise LeadershipLostError(
                        f"{self._lease} not renewed for {self._timing.deadline:.0f} s"
                    )
        finally:
            metrics.LEADER.set(0)

    async def release(self) -> None:
        """Let another replica lead at once; call it when all work of this one has ended."""
        lease = await self._cluster.get(self._lease)
        if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
            await self._cluster.replace("Lease", self._body(lease, ""))

    async def _renew(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                taken = await self._take()
        except (ClusterError, TimeoutError) as error:
            logger.warning("%s not renewed: %r", self._lease, error)
            return False
        if not taken:
            raise LeadershipLostError(f"{self._lease} is held by another replica")
        return True

    async def _take(self) -> bool:
        """Create, renew or take over the lease at the version read; False if another holds it."""
        lease = await self._cluster.get(self._lease)
        if lease is None:
            return await self._cluster.create("Lease", self._body(None, self._identity)) is not None
        holder = lease["spec"].get("holderIdentity") or ""
        if holder not in {"", self._identity} and not self._expired(lease):
            return False
        try:
            await self._cluster.replace("Lease", self._body(lease, self._identity))
        except ClusterError as error:
            if error.status == 409 and holder != self._identity:
                return False
            raise
        return True

    def _expired(self, lease: Body) -> bool:
        version, now = lease["metadata"]["resourceVersion"], asyncio.get_running_loop().time()
        if self._seen[0] != version:
            self._seen = (version, now)
        duration: float = lease["spec"].get("leaseDurationSeconds", self._timing.duration)
        return now - self._seen[1] >= duration

    def _body(self, lease: Body | None, holder: str) -> Body:
        """The lease as this replica wants it, to be written at the version that was read."""
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        before = lease["spec"] if lease else {}
        metadata = {"name": self._lease.name, "namespace": self._lease.namespace}
        if lease:
            metadata["resourceVersion"] = lease["metadata"]["resourceVersion"]
        spec = {
            **before,
            "holderIdentity": holder,
            "leaseDurationSeconds": self._timing.duration,
            "renewTime": now,
        }
        if holder and before.get("holderIdentity") != holder:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = before.get("leaseTransitions", -1) + 1
        return {"metadata": metadata, "spec": spec}


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    """Wait for ``stop``, no longer than so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
