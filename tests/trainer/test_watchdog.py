"""A stuck engine is distinguished from one that works for long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from espalier.trainer.http.watchdog import Watchdog

LIMIT, WAIT = 300.0, 60.0


class Clock:
    """A clock that moves only when the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def engine() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield pool


def started(
    watchdog: Watchdog, engine: ThreadPoolExecutor, work: Callable[[], None]
) -> Future[None]:
    begun = threading.Event()

    def watched() -> None:
        begun.set()
        work()

    future = engine.submit(watchdog.run, "forward-backward", watched)
    assert begun.wait(WAIT)
    return future


@pytest.mark.parametrize(
    ("cpu", "seconds", "is_stuck"),
    [
        ([0.0, 0.0], LIMIT, False),
        ([0.0, 0.0], LIMIT + 1, True),
        # A day of honest work.
        ([0.0, 0.5], 86400.0, False),
    ],
)
def test_only_a_thread_without_cpu_time_is_stuck(
    cpu: list[float], seconds: float, is_stuck: bool
) -> None:
    clock, used = Clock(), iter(cpu)
    watchdog = Watchdog(LIMIT, clock, lambda _thread: next(used))

    def work() -> None:
        clock.now += seconds
        found = watchdog.stuck()
        assert (found is not None) == is_stuck
        if found is not None:
            assert found.reason == "EngineStuck"
            assert "assign has run for 301 s" in found.detail

    watchdog.run("assign", work)


def test_the_time_without_cpu_counts_from_the_last_that_was_used() -> None:
    clock, used = Clock(), iter([0.0, 1.0, 1.0, 1.0])
    watchdog = Watchdog(LIMIT, clock, lambda _thread: next(used))
    found = []

    def work() -> None:
        for _ in range(3):
            clock.now += LIMIT - 1
            found.append(watchdog.stuck() is not None)

    watchdog.run("assign", work)
    assert found == [False, False, True]


def test_a_thread_that_is_really_blocked_is_stuck_until_it_goes_on(
    engine: ThreadPoolExecutor,
) -> None:
    clock, release = Clock(), threading.Event()
    watchdog = Watchdog(LIMIT, clock)
    future = started(watchdog, engine, lambda: assert_(release.wait(WAIT)))
    # What it uses until it blocks is seen here, and nothing after that.
    while watchdog.stuck() is None:
        clock.now += LIMIT + 1
    release.set()
    future.result(WAIT)
    assert watchdog.stuck() is None


def test_a_thread_that_really_computes_is_not(engine: ThreadPoolExecutor) -> None:
    clock, stop = Clock(), threading.Event()
    rounds = threading.Semaphore(0)
    watchdog = Watchdog(LIMIT, clock)

    def compute() -> None:
        while not stop.is_set():
            sum(range(100_000))
            rounds.release()

    future = started(watchdog, engine, compute)
    for _ in range(5):
        # Two, so that one of them began after the last look.
        assert rounds.acquire(timeout=WAIT)
        assert rounds.acquire(timeout=WAIT)
        clock.now += LIMIT + 1
        assert watchdog.stuck() is None
        while rounds.acquire(blocking=False):
            pass
    stop.set()
    future.result(WAIT)


def test_an_idle_engine_is_never_stuck() -> None:
    clock = Clock()
    watchdog = Watchdog(LIMIT, clock)
    assert watchdog.run("assign", lambda: 1) == 1
    clock.now += 86400.0
    assert watchdog.stuck() is None


def assert_(value: bool) -> None:
    assert value
