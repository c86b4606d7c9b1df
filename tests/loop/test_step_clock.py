"""The time of a step: every second of it is somebody's, and no second is counted twice."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.loop.step_clock import StepClock


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


def test_the_parts_of_a_step_add_up_to_the_time_since_the_step_before() -> None:
    time = Clock(100.0)
    clock = StepClock(time)
    with clock.phase("commit"):
        time.passes(5)
    clock.swapped(2)
    time.passes(1)
    with clock.phase("waiting"):
        with clock.phase("sampling"):
            time.passes(10)
        time.passes(3)
        with clock.phase("training"):
            time.passes(4)
    assert clock.lap() == {
        "time/sampling_seconds": 10,
        "time/reward_seconds": 3,
        "time/training_seconds": 4,
        "time/commit_seconds": 3,
        "time/swap_seconds": 2,
        "time/idle_seconds": 1,
        "time/step_seconds": 23,
    }
    assert set(clock.lap().values()) == {0}


def test_requests_that_overlap_count_once_and_not_while_the_loop_waits_for_something_else() -> None:
    time = Clock()
    clock = StepClock(time)
    with clock.phase("waiting"), clock.phase("sampling"):
        with clock.phase("sampling"):
            time.passes(1)
        with clock.phase("training"):
            time.passes(2)
        time.passes(4)
    with clock.phase("sampling"):
        time.passes(8)
    lap = clock.lap()
    assert (lap["time/sampling_seconds"], lap["time/training_seconds"]) == (5, 2)
    assert (lap["time/idle_seconds"], lap["time/step_seconds"]) == (8, 15)


def test_a_promotion_that_says_it_took_longer_than_the_whole_commit_takes_no_others_time() -> None:
    time = Clock()
    clock = StepClock(time)
    with clock.phase("commit"):
        time.passes(1)
    clock.swapped(60)
    lap = clock.lap()
    assert (lap["time/commit_seconds"], lap["time/swap_seconds"]) == (0, 1)
