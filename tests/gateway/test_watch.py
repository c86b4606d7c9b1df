"""The served world follows the cache, and requests can wait for it."""

from __future__ import annotations

import asyncio
import logging

import pytest
from tests.gateway.world import World, condition, controlled_by, digest

from espalier.gateway.world.world import NamespacedName, ServedWorld


async def test_objects_come_change_and_go() -> None:
    world = World()
    model = world.model("arith")
    world.head(model, digest("a1"), term=3)
    assert world.served.models[model].metadata.name == "arith"
    assert world.served.heads[model].status.term == 3
    world.head(model, digest("a1"), term=4)
    assert world.served.heads[model].status.term == 4
    world.drop("TrainableModel", "arith")
    assert model not in world.served.models


async def test_an_object_of_another_schema_is_reported_and_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    with caplog.at_level(logging.ERROR):
        world.put("TrainableModel", "odd", spec={"unheardOf": 1})
    assert not world.served.models
    named = [one.__dict__.get("object") for one in caplog.records]
    assert "TrainableModel home/odd" in named


async def test_a_waiter_gets_what_a_later_change_brings() -> None:
    world = World()
    model = world.model("arith")

    def term(served: ServedWorld) -> int | None:
        head = served.head_of(model)
        return head.status.term if head and head.status.term > 1 else None

    waiting = asyncio.create_task(world.view.wait_for(term, 60))
    await asyncio.sleep(0)
    world.head(model, digest("a1"), term=1)
    await asyncio.sleep(0)
    world.head(model, digest("a1"), term=2)
    assert await waiting == 2


async def test_a_wait_ends_with_none_when_time_is_up() -> None:
    world = World()
    assert (
        await world.view.wait_for(lambda s: s.models.get(NamespacedName("home", "x")), 0.01) is None
    )


REPLICAS = controlled_by("apps/v1", "ReplicaSet", "arith-rollout")
ROLES = ("rollout", "trainer")


@pytest.mark.parametrize("role", ROLES)
async def test_a_pod_that_copies_the_labels_is_no_pod_of_the_model(
    role: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    model = world.model("arith")
    own = "arith-trainer-0" if role == "trainer" else "arith-rollout-x"
    world.pod(model, own, role=role)
    world.pod(model, "aaa", role=role, ip="10.0.0.66", metadata={"ownerReferences": []})
    assert [pod.name for pod in world.served.pods_of(model, role)] == [own]
    assert any("Pod home/aaa" in message for message in caplog.messages)


async def test_a_pod_joins_once_its_replica_set_is_seen_and_leaves_with_it() -> None:
    world = World()
    model = world.model("arith")
    labels = {"espalier.dev/model": "arith", "espalier.dev/role": "rollout"}
    early = {"labels": labels, "ownerReferences": [REPLICAS]}
    status = {"podIP": "10.0.0.1", "conditions": [condition("Ready", "True")]}
    world.put("Pod", "early", metadata=early, spec={}, status=status)
    assert world.served.pods_of(model, "rollout") == []
    world.workload(model, "rollout")
    assert [pod.name for pod in world.served.pods_of(model, "rollout")] == ["early"]
    world.drop("ReplicaSet", "arith-rollout")
    assert world.served.pods_of(model, "rollout") == []


async def test_the_pods_of_a_deleted_model_are_none_of_its_namesakes() -> None:
    world = World()
    model = world.model("arith")
    world.pod(model, "arith-trainer-0", role="trainer")
    world.drop("TrainableModel", "arith")
    assert world.served.pods_of(model, "trainer") == []
    spec = world_spec(world)
    world.put("TrainableModel", "arith", metadata={"uid": "uid-another"}, spec=spec)
    assert world.served.pods_of(model, "trainer") == []


def world_spec(world: World) -> dict[str, object]:
    """The spec of any model."""
    world.model("any")
    return world.served.models[NamespacedName("home", "any")].spec.wire()
