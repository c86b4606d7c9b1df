"""The snapshot follows the cache, and requests can wait for it."""

from __future__ import annotations

import asyncio
import logging

import pytest
from tests.gateway.world import World, digest

from espalier.gateway.snapshot import Id, Snapshot


async def test_objects_come_change_and_go() -> None:
    world = World()
    model = world.model("arith")
    world.head(model, digest("a1"), epoch=3)
    assert world.snapshot.models[model].metadata.name == "arith"
    assert world.snapshot.heads[model].status.epoch == 3
    world.head(model, digest("a1"), epoch=4)
    assert world.snapshot.heads[model].status.epoch == 4
    world.drop("TrainableModel", "arith")
    assert model not in world.snapshot.models


async def test_an_object_of_another_schema_is_reported_and_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    with caplog.at_level(logging.ERROR):
        world.put("TrainableModel", "odd", spec={"unheardOf": 1})
    assert not world.snapshot.models
    assert caplog.records[0].__dict__["object"] == "TrainableModel home/odd"


async def test_a_waiter_gets_what_a_later_change_brings() -> None:
    world = World()
    model = world.model("arith")

    def epoch(snapshot: Snapshot) -> int | None:
        head = snapshot.head_of(model)
        return head.status.epoch if head and head.status.epoch > 1 else None

    waiting = asyncio.create_task(world.view.wait_for(epoch, 10))
    await asyncio.sleep(0)
    world.head(model, digest("a1"), epoch=1)
    await asyncio.sleep(0)
    world.head(model, digest("a1"), epoch=2)
    assert await waiting == 2


async def test_a_wait_ends_with_none_when_time_is_up() -> None:
    world = World()
    assert await world.view.wait_for(lambda s: s.models.get(Id("home", "x")), 0.01) is None
