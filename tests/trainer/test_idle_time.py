"""For how long a trainer was not called."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.trainer.http.idle_time import Calls


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_quiet_is_counted_from_the_end_of_the_last_call() -> None:
    clock = Clock()
    calls = Calls(clock)
    clock.now += 5
    assert calls.quiet_seconds == 5
    with calls.one():
        clock.now += 60
        # A long step, with a second call that came and went in it.
        with calls.one():
            clock.now += 1
        assert calls.quiet_seconds == 0
        clock.now += 7
    assert calls.quiet_seconds == 0
    clock.now += 2
    assert calls.quiet_seconds == 2
    calls.touch()
    assert calls.quiet_seconds == 0


def test_a_call_that_failed_has_ended() -> None:
    clock = Clock()
    calls = Calls(clock)
    try:
        with calls.one():
            raise RuntimeError
    except RuntimeError:
        clock.now += 3
    assert calls.quiet_seconds == 3
