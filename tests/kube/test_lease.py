"""One replica leads at a time; leadership passes on by release, expiry or loss."""

from __future__ import annotations

import asyncio

import pytest
from tests.fakes.cluster import FakeCluster

from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.cluster import ClusterError
from espalier.kube.lease import Election, LeadershipLostError, LeaseTiming
from espalier.kube.objects import ObjectKey

LIMIT_SECONDS = 60
# For leases that run out, at once or soon.
QUICK = LeaseTiming(duration=1, deadline=0.5, retry=0.05)
BRIEF = LeaseTiming(duration=1, deadline=30, retry=0.05)
# Asks as often; its leases do not run out however busy the machine is.
LASTING = LeaseTiming(duration=600, deadline=400, retry=0.05)


@pytest.fixture
def lease(namespace: str) -> ObjectKey:
    return ObjectKey("Lease", namespace, "espalier")


async def holder(kubernetes: KubernetesCluster, lease: ObjectKey) -> str:
    live = await kubernetes.get(lease)
    assert live is not None
    return str(live["spec"]["holderIdentity"])


async def renewed(kubernetes: KubernetesCluster, lease: ObjectKey) -> None:
    """Wait for the next renewal."""
    live = before = await kubernetes.get(lease)
    while live == before:
        live = await kubernetes.get(lease)


async def test_a_second_replica_leads_once_the_first_releases(
    kubernetes: KubernetesCluster, lease: ObjectKey
) -> None:
    first, second = (Election(kubernetes, lease, name, LASTING) for name in ("one", "two"))
    stop = asyncio.Event()
    async with asyncio.timeout(LIMIT_SECONDS):
        assert await first.acquire(stop)
        keeping = asyncio.create_task(first.keep(stop))
        waiting = asyncio.create_task(second.acquire(asyncio.Event()))
        assert await holder(kubernetes, lease) == "one"
        assert not waiting.done()

        stop.set()
        await keeping
        await first.release()

        assert await waiting
        assert await holder(kubernetes, lease) == "two"


async def test_the_lease_of_a_dead_replica_is_taken_over_and_counted(
    kubernetes: KubernetesCluster, lease: ObjectKey
) -> None:
    dead, heir = (Election(kubernetes, lease, name, BRIEF) for name in ("dead", "heir"))
    async with asyncio.timeout(LIMIT_SECONDS):
        assert await dead.acquire(asyncio.Event())
        assert await heir.acquire(asyncio.Event())

    live = await kubernetes.get(lease)
    assert live is not None
    assert live["spec"]["holderIdentity"] == "heir"
    assert live["spec"]["leaseTransitions"] == 1


async def test_a_renewed_lease_is_not_taken(
    kubernetes: KubernetesCluster, lease: ObjectKey
) -> None:
    clock = Clock()
    leader, other = (
        Election(kubernetes, lease, name, LASTING, clock=clock) for name in ("leader", "other")
    )
    stop = asyncio.Event()
    assert await leader.acquire(stop)
    keeping = asyncio.create_task(leader.keep(stop))
    waiting = asyncio.create_task(other.acquire(stop))

    # In all, several times what the lease lasts.
    async with asyncio.timeout(LIMIT_SECONDS):
        for _ in range(6):
            clock.seconds += 0.9 * LASTING.deadline
            # One renewal may have been on its way; the next began after that time.
            await renewed(kubernetes, lease)
            await renewed(kubernetes, lease)

    assert not keeping.done()
    assert not waiting.done()
    stop.set()
    await keeping
    assert not await waiting


async def test_a_replica_learns_that_another_leads(
    kubernetes: KubernetesCluster, lease: ObjectKey
) -> None:
    leader = Election(kubernetes, lease, "leader", LASTING)
    assert await leader.acquire(asyncio.Event())
    live = await kubernetes.get(lease)
    assert live is not None
    await kubernetes.replace("Lease", {**live, "spec": {**live["spec"], "holderIdentity": "thief"}})

    with pytest.raises(LeadershipLostError, match="held by another"):
        async with asyncio.timeout(LIMIT_SECONDS):
            await leader.keep(asyncio.Event())


async def test_a_replica_gives_up_when_it_cannot_renew() -> None:
    class Unreachable(FakeCluster):
        broken = False

        async def get(self, key: ObjectKey) -> dict[str, object] | None:
            if self.broken:
                raise ClusterError(0, "ConnectionFailed", "no route")
            return await super().get(key)

    cluster = Unreachable()
    leader = Election(cluster, ObjectKey("Lease", "espalier", "espalier"), "leader", QUICK)
    assert await leader.acquire(asyncio.Event())
    cluster.broken = True

    with pytest.raises(LeadershipLostError, match="not renewed"):
        async with asyncio.timeout(LIMIT_SECONDS):
            await leader.keep(asyncio.Event())


async def test_one_of_many_candidates_leads() -> None:
    cluster, stop = FakeCluster(), asyncio.Event()
    lease = ObjectKey("Lease", "espalier", "espalier")
    candidates = [Election(cluster, lease, f"replica-{number}", LASTING) for number in range(5)]
    waits = [asyncio.create_task(candidate.acquire(stop)) for candidate in candidates]

    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=LIMIT_SECONDS)
    stop.set()

    assert sum(await asyncio.gather(*waits)) == 1


async def test_an_error_while_acquiring_is_tried_again() -> None:
    cluster = FakeCluster()
    cluster.fail_after(1, ClusterError(500, "InternalError", "etcd is away"))
    candidate = Election(cluster, ObjectKey("Lease", "espalier", "espalier"), "only", LASTING)
    async with asyncio.timeout(LIMIT_SECONDS):
        assert await candidate.acquire(asyncio.Event())


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


async def test_a_leader_may_act_until_its_deadline_and_not_after() -> None:
    clock = Clock()
    key = ObjectKey("Lease", "espalier", "espalier")
    leader = Election(FakeCluster(), key, "leader", QUICK, clock=clock)
    with pytest.raises(LeadershipLostError):
        leader.check()
    assert await leader.acquire(asyncio.Event())
    clock.seconds += QUICK.deadline - 0.01
    leader.check()
    clock.seconds += 0.01
    with pytest.raises(LeadershipLostError, match="not renewed"):
        leader.check()


async def test_the_deadline_counts_from_when_the_renewal_was_sent() -> None:
    clock = Clock()

    class Slow(FakeCluster):
        async def create(self, kind: str, body: dict[str, object]) -> dict[str, object] | None:
            clock.seconds += QUICK.deadline
            return await super().create(kind, body)

    leader = Election(
        Slow(), ObjectKey("Lease", "espalier", "espalier"), "leader", QUICK, clock=clock
    )
    assert await leader.acquire(asyncio.Event())
    with pytest.raises(LeadershipLostError):
        leader.check()
