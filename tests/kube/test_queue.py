"""The queue: once, never twice at the same time, again when dirty, backoff on failure."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.backoff import Backoff
from espalier.kube.cluster import ClusterError
from espalier.kube.objects import ObjectKey
from espalier.kube.queue import WorkQueue

LIMIT_SECONDS = 60
AT_ONCE = Backoff(first=0.0)


def key(name: str = "a") -> ObjectKey:
    return ObjectKey("TrainingRun", "default", name)


@contextlib.asynccontextmanager
async def working(queue: WorkQueue) -> AsyncIterator[None]:
    stop = asyncio.Event()
    running = asyncio.create_task(queue.run(stop, grace_seconds=1))
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            yield
    finally:
        stop.set()
        await running


class Gate:
    """A reconcile that waits to be let through, and records what runs."""

    def __init__(self) -> None:
        self.started: asyncio.Queue[ObjectKey] = asyncio.Queue()
        self.pass_one = asyncio.Semaphore(0)
        self.runs: Counter[ObjectKey] = Counter()

    async def __call__(self, key: ObjectKey) -> None:
        self.runs[key] += 1
        self.started.put_nowait(key)
        await self.pass_one.acquire()


async def test_a_key_added_often_runs_once() -> None:
    gate = Gate()
    queue = WorkQueue(gate)
    for _ in range(5):
        queue.add(key())
    async with working(queue):
        await gate.started.get()
        gate.pass_one.release()
        queue.add(key("last"))
        gate.pass_one.release()
        assert await gate.started.get() == key("last")
    assert gate.runs[key()] == 1


async def test_a_key_added_while_it_runs_runs_again_afterwards() -> None:
    gate = Gate()
    queue = WorkQueue(gate)
    async with working(queue):
        queue.add(key())
        await gate.started.get()
        queue.add(key())
        queue.add(key())
        assert gate.started.empty()
        gate.pass_one.release()
        await gate.started.get()
        gate.pass_one.release()
    assert gate.runs[key()] == 2


async def test_a_stuck_key_does_not_hold_up_others() -> None:
    gate = Gate()
    queue = WorkQueue(gate, workers=2)
    async with working(queue):
        queue.add(key("stuck"))
        queue.add(key("other"))
        assert {await gate.started.get(), await gate.started.get()} == {key("stuck"), key("other")}
        gate.pass_one.release()
        gate.pass_one.release()


async def test_a_failure_is_retried_until_it_succeeds() -> None:
    done = asyncio.Event()
    attempts = 0

    async def fail_twice(_: ObjectKey) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise RuntimeError("not yet")
        done.set()

    queue = WorkQueue(fail_twice, backoff=AT_ONCE)
    async with working(queue):
        queue.add(key())
        await done.wait()
    assert attempts == 3


async def test_a_throttled_key_comes_back_no_sooner_than_the_server_asks() -> None:
    delays: list[float] = []

    class Watched(WorkQueue):
        def add_after(self, key: ObjectKey, seconds: float) -> None:
            delays.append(seconds)
            done.set()

    async def throttled(_: ObjectKey) -> None:
        raise ClusterError(429, "TooManyRequests", "slow down", retry_after=7.0)

    done = asyncio.Event()
    queue = Watched(throttled, backoff=AT_ONCE)
    async with working(queue):
        queue.add(key())
        await done.wait()
    assert delays == [7.0]


async def test_a_full_queue_holds_each_key_once() -> None:
    gate = Gate()
    queue = WorkQueue(gate, workers=1)
    for number in range(10_000):
        queue.add(key(str(number % 10)))
    async with working(queue):
        for _ in range(10):
            gate.pass_one.release()
            await gate.started.get()
    assert set(gate.runs.values()) == {1}


async def test_others_have_their_turn_between_passes_that_wait_for_nothing() -> None:
    seen: list[int] = []
    done = 0

    async def pass_at_once(_: ObjectKey) -> None:
        nonlocal done
        done += 1

    async def renew() -> None:
        while done < 100:
            seen.append(done)
            await asyncio.sleep(0)

    queue = WorkQueue(pass_at_once, workers=1)
    for number in range(100):
        queue.add(key(str(number)))
    renewing = asyncio.create_task(renew())
    async with working(queue):
        await renewing
    assert len(seen) >= 100


async def test_a_reconciliation_that_hangs_shows_its_age() -> None:
    gate = Gate()
    queue = WorkQueue(gate)
    async with working(queue):
        assert queue.longest_run() == 0.0
        queue.add(key())
        await gate.started.get()
        assert queue.longest_run() > 0.0
        assert queue.oldest_wait() == 0.0
        gate.pass_one.release()


async def test_a_key_that_asks_for_it_runs_again() -> None:
    done = asyncio.Event()
    answers = iter([0.001, None])

    async def again(_: ObjectKey) -> float | None:
        answer = next(answers)
        if answer is None:
            done.set()
        return answer

    queue = WorkQueue(again)
    async with working(queue):
        queue.add(key())
        await done.wait()


async def test_of_two_delays_the_earlier_counts() -> None:
    gate = Gate()
    queue = WorkQueue(gate)
    async with working(queue):
        queue.add_after(key(), 3600)
        queue.add_after(key(), 0.001)
        queue.add_after(key(), 3600)
        assert await gate.started.get() == key()
        gate.pass_one.release()


async def test_stopping_lets_a_run_finish() -> None:
    started, finish, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(_: ObjectKey) -> None:
        started.set()
        await finish.wait()
        finished.set()

    queue, stop = WorkQueue(slow), asyncio.Event()
    running = asyncio.create_task(queue.run(stop, grace_seconds=LIMIT_SECONDS))
    queue.add(key())
    await started.wait()
    stop.set()
    finish.set()
    await running
    assert finished.is_set()


async def test_stopping_cancels_a_run_that_outlasts_the_grace() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def stuck(_: ObjectKey) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    queue, stop = WorkQueue(stuck), asyncio.Event()
    running = asyncio.create_task(queue.run(stop, grace_seconds=0.01))
    queue.add(key())
    await started.wait()
    stop.set()
    await running
    assert cancelled.is_set()


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 0.2), (2, 0.4), (3, 0.8), (8, 25.6), (10, 60.0), (5000, 60.0)]
)
def test_backoff_doubles_up_to_a_minute(failures: int, seconds: float) -> None:
    backoff = Backoff()
    assert backoff.delay(failures, chance=0.0) == pytest.approx(seconds)
    assert backoff.delay(failures, chance=1.0) == pytest.approx(0.8 * seconds)


@settings(max_examples=60, deadline=None)
@given(
    adds=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=40),
    pauses=st.lists(st.integers(0, 3), min_size=1, max_size=10),
    faults=st.sets(st.integers(0, 20)),
)
def test_every_add_is_followed_by_a_run_and_no_key_runs_twice_at_once(
    adds: list[tuple[int, int]], pauses: list[int], faults: set[int]
) -> None:
    asyncio.run(_follow(adds, pauses, faults))


async def _follow(adds: list[tuple[int, int]], pauses: list[int], faults: set[int]) -> None:
    running: set[ObjectKey] = set()
    clock, calls = 0, 0
    added: dict[ObjectKey, int] = {}
    succeeded: dict[ObjectKey, int] = {}

    async def reconcile(key: ObjectKey) -> None:
        nonlocal calls
        assert key not in running
        running.add(key)
        begun, call = clock, calls
        calls += 1
        for _ in range(pauses[call % len(pauses)]):
            await asyncio.sleep(0)
        running.discard(key)
        if call in faults:
            raise RuntimeError("injected")
        succeeded[key] = begun

    queue = WorkQueue(reconcile, workers=3, backoff=AT_ONCE)
    async with working(queue):
        for number, turns in adds:
            clock += 1
            added[key(str(number))] = clock
            queue.add(key(str(number)))
            for _ in range(turns):
                await asyncio.sleep(0)
        # Each turn of the event loop takes the queue a step further.
        while any(succeeded.get(wanted, 0) < when for wanted, when in added.items()):  # noqa: ASYNC110
            await asyncio.sleep(0)
