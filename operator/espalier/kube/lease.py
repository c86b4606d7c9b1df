"""Leader election by a Lease of coordination.k8s.io, with client-go's timing.

A replica that loses the lease must end its process: its work cannot be undone. One that
was frozen may not know yet that it lost: before each effect it asks ``check``, which goes by the
time since the lease was last renewed and needs no answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from espalier.kube import queue_metrics
from espalier.kube.cluster import HTTP_FORBIDDEN, Cluster, ClusterError
from espalier.kube.objects import Body, ObjectKey

logger = logging.getLogger(__name__)

# Jitter, so that candidates that lost their leader together do not all return at once.
JITTER = 0.2


class LeadershipLostError(Exception):
    """The lease could not be renewed in time, or another replica holds it."""


@dataclass(frozen=True)
class LeaseTiming:
    """Seconds after which others may take a lease, its holder gives up, and between tries."""

    duration: int = 15
    deadline: float = 10.0
    retry: float = 2.0


def _loop_seconds() -> float:
    return asyncio.get_running_loop().time()


def _utc() -> datetime:
    return datetime.now(UTC)


class Election:
    """One replica's part in the election; ``identity`` is unique, such as the name of its pod.

    ``clock`` counts seconds and never goes back; ``now`` is the wall clock, written for people to
    read and never compared.
    """

    def __init__(
        self,
        cluster: Cluster,
        lease: ObjectKey,
        identity: str,
        timing: LeaseTiming | None = None,
        *,
        clock: Callable[[], float] = _loop_seconds,
        now: Callable[[], datetime] = _utc,
    ) -> None:
        self._cluster = cluster
        self._lease = lease
        self._identity = identity
        self._timing = timing or LeaseTiming()
        self._clock = clock
        self._now = now
        # When the last renewal was sent: the lease is ours for at least its duration from then.
        self._renewed: float | None = None
        # Clocks of two nodes differ: a lease's age is counted from when this replica saw it change.
        self._seen = ("", 0.0)
        # The API server's message if it forbids us to take part in the election.
        self.fault: str | None = None

    async def acquire(self, stop: asyncio.Event) -> bool:
        """Wait until this replica leads; False if ``stop`` is set first."""
        while not stop.is_set():
            pause = self._timing.retry
            try:
                taken = await self._try(self._timing.deadline)
                self.fault = None
                if taken:
                    logger.info("%s leads by lease %s", self._identity, self._lease)
                    queue_metrics.LEADER.set(1)
                    return True
            except TimeoutError:
                logger.warning("lease %s: no answer", self._lease)
            except ClusterError as error:
                logger.warning("lease %s: %s", self._lease, error)
                self.fault = str(error) if error.status == HTTP_FORBIDDEN else None
                pause = max(pause, error.retry_after)
            await _wait(stop, pause * random.uniform(1, 1 + JITTER))
        return False

    async def keep(self, ended: asyncio.Event) -> None:
        """Renew until ``ended``; LeadershipLostError when the lease is lost."""
        try:
            while not ended.is_set():
                await _wait(ended, self._timing.retry)
                self.check()
                await self._renew()
        finally:
            queue_metrics.LEADER.set(0)

    def check(self) -> None:
        """LeadershipLostError unless it was renewed too recently for another replica to have it."""
        if self._left() <= 0:
            raise LeadershipLostError(
                f"{self._lease} not renewed for {self._timing.deadline:.0f} s"
            )

    async def release(self) -> None:
        """Let another replica lead at once; call it when all work of this one has ended."""
        self._renewed = None
        lease = await self._cluster.get(self._lease)
        if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
            await self._cluster.replace("Lease", self._body(lease, ""))

    def _left(self) -> float:
        """Seconds for which the lease is surely ours."""
        if self._renewed is None:
            return 0.0
        return self._renewed + self._timing.deadline - self._clock()

    async def _renew(self) -> None:
        """Renew once; a failure is only logged while the lease is still ours."""
        try:
            if not await self._try(self._left()):
                raise LeadershipLostError(f"{self._lease} is held by another replica")
        except (ClusterError, TimeoutError) as error:
            logger.warning("%s not renewed: %r", self._lease, error)
            self.check()

    async def _try(self, seconds: float) -> bool:
        """Take or renew the lease within these seconds; False if another holds it."""
        started = self._clock()
        async with asyncio.timeout(seconds):
            taken = await self._take()
        if taken:
            self._renewed = started
        return taken

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
        version, now = lease["metadata"]["resourceVersion"], self._clock()
        if self._seen[0] != version:
            self._seen = (version, now)
        duration: float = lease["spec"].get("leaseDurationSeconds", self._timing.duration)
        return now - self._seen[1] >= duration

    def _body(self, lease: Body | None, holder: str) -> Body:
        """The lease as this replica wants it, to be written at the version that was read."""
        now = self._now().isoformat(timespec="microseconds").replace("+00:00", "Z")
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
    """Wait for ``stop``, for this many seconds at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
