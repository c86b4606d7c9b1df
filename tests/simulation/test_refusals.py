"""An API server that answers 409 or 429: what is written in the end is the same."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from tests.simulation.scenarios import SCENARIOS
from tests.simulation.virtual_time import run
from tests.simulation.weather import GUARDED, Fault, Weather
from tests.simulation.world import World, world

from espalier.kube.cluster import ClusterError

STATUSES = (409, 429)
RETRY_AFTER = 3.0
REFUSED = 40


class Refusing(Weather):
    """Every other call that changes something is refused, ``REFUSED`` times in all."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self._status = status
        self._calls = 0
        self.refused: list[float] = []

    def fault(self, target: str, verb: str) -> Fault | None:
        guarded = GUARDED if self._status == 409 else (*GUARDED, "create", "delete", "get", "each")
        if target != "cluster" or verb not in guarded or len(self.refused) == REFUSED:
            return None
        self._calls += 1
        if self._calls % 2:
            return None
        self.refused.append(asyncio.get_running_loop().time())
        if self._status == 409:
            return Fault(ClusterError(409, "Conflict", "the object has been modified"))
        return Fault(ClusterError(429, "TooManyRequests", "later", RETRY_AFTER))


async def _play(weather: Weather) -> dict[str, Any]:
    async with world(weather=weather) as w:
        await SCENARIOS["branch"].story(w)
        await w.settle(75.0)
        return _compared(w)


def _compared(w: World) -> dict[str, Any]:
    return SCENARIOS["branch"].compared(w.outcome())


@pytest.mark.parametrize("status", STATUSES)
def test_refused_calls_are_made_again_and_change_nothing_in_the_end(status: int) -> None:
    weather = Refusing(status)
    assert run(_play(weather)) == run(_play(Weather()))
    assert len(weather.refused) == REFUSED


def test_a_throttled_call_is_not_made_again_before_its_time() -> None:
    """While all else waits its turn, one and the same object's status is what is asked for."""
    times: list[float] = []

    class Throttled(Weather):
        def fault(self, target: str, verb: str) -> Fault | None:
            if (target, verb) != ("cluster", "apply_status") or len(times) == 5:
                return None
            times.append(asyncio.get_running_loop().time())
            return Fault(ClusterError(429, "TooManyRequests", "later", RETRY_AFTER))

    async def scenario() -> None:
        async with world(weather=Throttled()) as w:
            await w.cluster.apply(
                "CheckpointHead",
                {
                    "metadata": {"name": "alone", "namespace": "default"},
                    "spec": {"modelRef": {"name": "none"}, "mode": "Track"},
                },
                manager="kubectl",
            )
            await w.until(
                lambda: bool(w.status("CheckpointHead", "alone").get("conditions")), "told"
            )

    run(scenario())
    pauses = [later - sooner for sooner, later in pairwise(times)]
    assert len(pauses) == 4
    assert all(pause >= RETRY_AFTER for pause in pauses)
