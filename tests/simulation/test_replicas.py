"""Two replicas: one leads, the other takes over, and a leader that was frozen does no harm."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.simulation.life import Life
from tests.simulation.scenarios import branch
from tests.simulation.virtual_time import run
from tests.simulation.weather import Weather
from tests.simulation.world import World, head_spec, model_spec, run_spec, world

from espalier.controllers.process.replica import Replica
from espalier.kube.lease import LeadershipLostError

TAKEN_OVER_SECONDS = 20.0


@asynccontextmanager
async def standby(
    w: World, skew: float = 0.0
) -> AsyncIterator[tuple[Replica, asyncio.Task[None], Life]]:
    """A second replica beside the world's own, which leads."""
    await w.until(lambda: leads(w), "the first leads")
    life = Life(name="operator-1")
    replica, task = w.operate(life, Weather(), skew)
    try:
        yield replica, task, life
    finally:
        life.die()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def leads(w: World) -> bool:
    return w.replica is not None and w.replica.leads


async def trained(w: World, steps: int) -> None:
    await w.apply("TrainableModel", "tiny", model_spec())
    await w.apply("TrainingRun", "digits", run_spec("tiny", steps))
    await w.until(lambda: w.succeeded("digits", steps), "the run ends")


def test_a_standby_does_nothing_until_the_leader_dies_and_then_goes_on() -> None:
    async def scenario() -> None:
        async with world() as w, standby(w) as (second, _, life):
            await trained(w, 1)
            assert (second.leads, life.sent) == (False, 0)
            # Its node is gone: nobody starts it again.
            w.replaced = True
            await w.kill()
            await w.apply("TrainingRun", "digits", run_spec("tiny", 3))
            await w.until(lambda: w.succeeded("digits", 3), "the other goes on")
            assert second.leads

    run(scenario())


@pytest.mark.parametrize("skew", [-3600.0, 3600.0], ids=["behind", "ahead"])
def test_a_clock_an_hour_off_neither_takes_a_lease_that_is_kept_nor_leaves_a_dead_one(
    skew: float,
) -> None:
    async def scenario() -> None:
        async with world() as w, standby(w, skew) as (second, _, __):
            await w.rest(60, seconds=1.0)
            assert leads(w)
            assert not second.leads
            w.replaced = True
            await w.kill()
            await w.rest(int(TAKEN_OVER_SECONDS), seconds=1.0)
            assert second.leads

    run(scenario())


@pytest.mark.parametrize("hundredth", range(5, 100, 30))
def test_a_leader_frozen_past_its_lease_sends_nothing_once_it_wakes(hundredth: int) -> None:
    expected, steps = undisturbed()

    async def scenario() -> None:
        async with world() as w, standby(w) as (second, _, __):
            first, task = w.life, w.task
            at = first.steps + (steps - first.steps) * hundredth // 100
            first.witness = lambda: first.thawed.clear() if first.steps == at else None
            w.replaced = True
            await branch(w)
            assert first.frozen
            await w.until(lambda: second.leads, "the other takes over")
            sent = first.sent
            first.thawed.set()
            with pytest.raises(LeadershipLostError):
                await task
            assert first.sent == sent
            await w.settle(5.0)
            assert w.outcome() == expected

    run(scenario())


@functools.cache
def undisturbed() -> tuple[dict[str, object], int]:
    """How the story ends with one replica, and how many steps that takes."""

    async def scenario() -> tuple[dict[str, object], int]:
        async with world() as w:
            await w.until(lambda: leads(w), "it leads")
            await branch(w)
            await w.settle(5.0)
            return w.outcome(), w.life.steps

    return run(scenario())


def test_a_leader_that_is_told_to_stop_hands_over_at_once_and_in_order() -> None:
    async def scenario() -> None:
        async with world() as w, standby(w) as (second, _, __):
            await trained(w, 1)
            assert w.replica is not None
            w.replaced = True
            w.replica.stop.set()
            begun = asyncio.get_running_loop().time()
            await w.task
            while not second.leads:
                await w.tick()
            # No wait for the lease to run out: it was released.
            assert asyncio.get_running_loop().time() - begun < 3.0
            head = head_spec("tiny", "Pin", "tiny-000001")
            await w.apply("CheckpointHead", "tiny", head)
            await w.until(
                lambda: w.condition("CheckpointHead", "tiny", "Pinned")["status"] == "True", "seen"
            )

    run(scenario())
