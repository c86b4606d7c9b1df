"""Retention, and deletion in any order: it ends in bounded time, and Retain keeps the bytes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest
from tests.simulation.virtual_time import run
from tests.simulation.world import (
    NAMESPACE,
    World,
    head_spec,
    model_spec,
    run_spec,
    world,
)

from espalier.core.checkpoints.adoption import plan
from espalier.core.checkpoints.commits import checkpoint_body
from espalier.core.checkpoints.disposal import TIMEOUT
from espalier.core.lineage.lineage import Point
from espalier.kube.objects import Body

OURS = ("TrainableModel", "TrainingRun", "CheckpointHead", "Checkpoint")
PIECES = ("TrainableModel", "TrainingRun", "CheckpointHead", "Checkpoint", "PersistentVolumeClaim")


async def trained(w: World, steps: int = 3, **spec: object) -> None:
    await w.apply("PersistentVolumeClaim", "weights", {})
    await w.apply("TrainableModel", "tiny", model_spec(**spec))
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track"))
    await w.apply("TrainingRun", "digits", run_spec("tiny", steps))
    await w.until(
        lambda: w.condition("TrainingRun", "digits", "Succeeded")["status"] == "True",
        "the run succeeds",
    )


def digests(w: World, model: str = "tiny") -> set[str]:
    return {commit.digest for commit in w.trainer.volume(model).commits}


def checkpoint_bodies(w: World) -> list[Body]:
    return [body for key, body in w.cluster.objects.items() if key.kind == "Checkpoint"]


def removed(w: World, model: str = "tiny") -> set[str]:
    return w.trainer.volume(model).removed


def left(w: World, kinds: Sequence[str] = OURS) -> list[str]:
    return [str(key) for key in w.cluster.objects if key.kind in kinds]


def events(w: World, reason: str) -> list[str]:
    return [
        body["message"]
        for key, body in w.cluster.objects.items()
        if key.kind == "Event" and body["reason"] == reason
    ]


async def delete_all(w: World, kind: str) -> None:
    for key in [key for key in w.cluster.objects if key.kind == kind]:
        await w.cluster.delete(key)


def test_a_run_keeps_what_its_rules_and_its_head_need_while_it_trains() -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.apply("TrainableModel", "tiny", model_spec())
            rules = {"keepLast": 2, "keepEverySteps": 5}
            await w.apply("TrainingRun", "digits", run_spec("tiny", 12, checkpoint=rules))
            await w.until(
                lambda: w.condition("TrainingRun", "digits", "Succeeded")["status"] == "True",
                "the run succeeds",
            )
            kept = [f"tiny-{n:06d}" for n in (1, 5, 10, 11, 12)]
            await w.until(lambda: w.checkpoints("tiny") == kept, "the rest is retired")
            assert w.status("TrainingRun", "digits")["step"] == 12
            assert removed(w) == set()
            (branch,) = w.status("TrainableModel", "tiny")["tree"]["branches"]
            assert (branch["firstStep"], branch["lastStep"]) == (1, 12)
            # A new operator reads every commit again.
            w.life.dead = True
            await w.rest()
            assert w.checkpoints("tiny") == kept
            assert events(w, "CommitFenced") == []
            await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Pin", kept[1]))
            await w.until(lambda: w.current("tiny") == kept[1], "what was kept can be served")

    run(scenario())


def test_under_delete_the_bytes_go_with_the_objects_and_one_job_serves_many() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w, 8, deletionPolicy="Delete")
            rules = {"keepLast": 2}
            await w.apply("TrainingRun", "digits", run_spec("tiny", 8, checkpoint=rules))
            kept = [f"tiny-{n:06d}" for n in (1, 7, 8)]
            await w.until(lambda: w.checkpoints("tiny") == kept, "the rest is retired")
            names = {c.digest: c.name for c in w.trainer.volume("tiny").commits}
            assert sorted(names[d] for d in removed(w)) == [f"tiny-{n:06d}" for n in range(2, 7)]
            made = [k for verb, k in w.cluster.calls if verb == "create" and k.kind == "Job"]
            assert [key.name for key in made].count("tiny-collect") == 1
            await w.until(lambda: not w.get("Job", "tiny-collect"), "the Job is gone")
            assert events(w, "BytesKept") == []

    run(scenario())


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
def test_pruning_everything_in_any_order_ends_and_retain_keeps_the_bytes(policy: str) -> None:
    async def scenario(order: Sequence[str]) -> None:
        async with world() as w:
            await trained(w, 3, deletionPolicy=policy)
            for kind in order:
                await delete_all(w, kind)
                await w.rest(3)
            if policy == "Retain":
                # Nobody but a person deletes what is kept as a record.
                await delete_all(w, "Checkpoint")
            limit = asyncio.get_running_loop().time() + TIMEOUT.total_seconds()
            await w.until(lambda: left(w) == [], f"all is gone after {order}")
            assert asyncio.get_running_loop().time() < limit
            assert removed(w) in ([set()] if policy == "Retain" else [set(), digests(w)])
            await w.until(lambda: not w.get("Job", "tiny-collect"), "no Job is left")

    orders = list(itertools.permutations(PIECES))
    # Each kind is first and last many times among every fifth of the 120 orders.
    for order in orders[:: 5 if policy == "Retain" else 3]:
        run(scenario(order))


@pytest.mark.parametrize("seconds", [0, 5])
def test_a_model_that_is_made_anew_begins_without_what_is_being_deleted(seconds: int) -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w, 3, deletionPolicy="Delete")
            before = {body["metadata"]["uid"] for body in checkpoint_bodies(w)}
            for kind in ("TrainingRun", "CheckpointHead", "TrainableModel"):
                await delete_all(w, kind)
            await w.rest(seconds)
            assert w.checkpoints("tiny")
            await w.apply("TrainableModel", "tiny", model_spec(deletionPolicy="Delete"))
            await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track"))
            assert w.status("TrainableModel", "tiny").get("tree", {}).get("branches", []) == []
            await w.apply("TrainingRun", "digits", run_spec("tiny", 1))
            await w.until(lambda: w.succeeded("digits", 1), "the new run ends")
            made = checkpoint_bodies(w)
            assert [body["metadata"]["name"] for body in made] == ["tiny-000001"]
            assert made[0]["metadata"]["uid"] not in before
            assert "parentRef" not in made[0]["spec"]

    run(scenario())


def test_a_model_under_delete_takes_its_checkpoints_and_their_bytes_with_it() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w, 3, deletionPolicy="Delete")
            await w.delete("TrainableModel", "tiny")
            await w.until(lambda: w.checkpoints("tiny") == [], "the checkpoints are gone")
            assert removed(w) == digests(w)

    run(scenario())


def test_a_model_under_retain_leaves_its_checkpoints_and_their_bytes() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w, 3)
            await w.delete("TrainableModel", "tiny")
            await w.rest()
            assert len(w.checkpoints("tiny")) == 3
            await delete_all(w, "Checkpoint")
            await w.until(lambda: not w.checkpoints("tiny"), "the records are gone")
            assert removed(w) == set()

    run(scenario())


def test_the_policy_can_change_and_the_marks_follow() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w, 2, deletionPolicy="Delete")
            assert w.get("Checkpoint", "tiny-000001")["metadata"]["finalizers"]
            await w.apply("TrainableModel", "tiny", model_spec(deletionPolicy="Retain"))
            await w.until(
                lambda: all(
                    not w.get("Checkpoint", name)["metadata"].get("finalizers")
                    and not w.get("Checkpoint", name)["metadata"].get("ownerReferences")
                    for name in w.checkpoints("tiny")
                ),
                "the marks are gone",
            )
            await w.delete("TrainableModel", "tiny")
            await w.rest()
            assert len(w.checkpoints("tiny")) == 2
            assert removed(w) == set()

    run(scenario())


def test_what_a_fork_started_from_survives_its_model() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w, 3, deletionPolicy="Delete")
            origin = {"checkpointRef": {"name": "tiny-000002"}}
            await w.apply("TrainableModel", "fork", model_spec(source=origin))
            await w.until(lambda: w.current("fork") == "tiny-000002", "the fork serves its origin")
            await w.delete("TrainableModel", "tiny")
            await w.until(lambda: w.checkpoints("tiny") == ["tiny-000002"], "the others are gone")
            names = {c.digest: c.name for c in w.trainer.volume("tiny").commits}
            assert "tiny-000002" not in {names[d] for d in removed(w)}
            assert w.current("fork") == "tiny-000002"

    run(scenario())


def test_deleting_what_the_head_serves_waits_for_the_head_and_then_keeps_the_bytes() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w, 3, deletionPolicy="Delete")
            await w.delete("Checkpoint", "tiny-000003")
            await w.rest(100)
            assert "deletionTimestamp" in w.get("Checkpoint", "tiny-000003")["metadata"]
            for _ in range(int(TIMEOUT.total_seconds() / 0.1)):
                await w.tick()
            assert removed(w) == set()
            assert any("CheckpointHead tiny serves it" in said for said in events(w, "BytesKept"))
            assert w.current("tiny") == "tiny-000003"

    run(scenario())


def test_a_tip_that_somebody_deleted_comes_back_and_training_goes_on() -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.apply("TrainingRun", "digits", run_spec("tiny", 6))
            await w.until_at(lambda: len(w.checkpoints("tiny")) >= 3, "it trains")
            w.trains = False
            await w.rest(5)
            known = w.checkpoints("tiny")
            await w.delete("Checkpoint", known[-1])
            await w.until_at(lambda: w.checkpoints("tiny") == known, "the tip is back")
            w.trains = True
            await w.until(
                lambda: w.condition("TrainingRun", "digits", "Succeeded")["status"] == "True",
                "the run succeeds",
            )
            assert len(w.checkpoints("tiny")) == 6

    run(scenario())


def test_a_collector_that_cannot_start_is_given_up_with_an_event() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w, 3, deletionPolicy="Delete")
            w.kubelet.waiting["collector"] = {"reason": "ImagePullBackOff", "message": "no such"}
            await w.delete("TrainableModel", "tiny")
            for _ in range(int(TIMEOUT.total_seconds() / 0.1) + 20):
                await w.tick()
            assert w.checkpoints("tiny") == []
            assert removed(w) == set()
            assert all("ImagePullBackOff" in said for said in events(w, "BytesKept"))
            assert len(events(w, "BytesKept")) == 3
            assert not w.get("Job", "tiny-collect")

    run(scenario())


def test_a_namespace_that_goes_takes_everything_with_it() -> None:
    """Its controller deletes every object in its own order; no Job can be made any more."""

    async def scenario() -> None:
        async with world() as w:
            await trained(w, 3, deletionPolicy="Delete")
            w.cluster.terminating.add(NAMESPACE)
            for key in list(w.cluster.objects):
                if key in w.cluster.objects and key.kind != "Event":
                    await w.cluster.delete(key)
            w.trains = False
            await w.until(lambda: left(w, PIECES) == [], "nothing is left")
            assert removed(w) == set()

    run(scenario())


async def lost(w: World) -> None:
    """Every object of the namespace is gone; the volume is not."""
    for kind in PIECES:
        await delete_all(w, kind)
    await w.until(lambda: left(w, PIECES) == [], "nothing is left")
    await w.rest()


def test_after_the_namespace_was_lost_a_run_brings_the_tree_back_from_the_trainers_log() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w, 3)
            await lost(w)
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.apply("TrainingRun", "more", run_spec("tiny", 2))
            await w.until(lambda: w.current("tiny") == "tiny-000005", "training went on")
            assert w.checkpoints("tiny") == [f"tiny-{n:06d}" for n in range(1, 6)]

    run(scenario())


def test_after_an_adoption_the_head_serves_what_it_served_and_training_goes_on_from_there() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w, 3)
            pin = head_spec("tiny", "Pin", "tiny-000001", onPin="Branch")
            await w.apply("CheckpointHead", "tiny", pin)
            await w.apply("TrainingRun", "digits", run_spec("tiny", 5))
            await w.until(lambda: len(w.checkpoints("tiny")) == 5, "branched")
            await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track"))
            await w.until(lambda: w.current("tiny") == "tiny-b2-000003", "follows the branch")
            await lost(w)
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.until(lambda: w.current("tiny") == "", "the base is served")
            found = w.trainer.volume("tiny").commits
            for commit in plan(found, {}).adopted:
                parent = Point(commit.parent_name, commit.step - 1, commit.parent)
                body = checkpoint_body(commit, NAMESPACE, parent)
                await w.cluster.apply("Checkpoint", body, manager="espalier-adopt")
            await w.until(lambda: w.current("tiny") == "tiny-b2-000003", "it serves what it served")
            await w.apply("TrainingRun", "more", run_spec("tiny", 1))
            await w.until(lambda: w.current("tiny") == "tiny-b2-000004", "training went on")
            (_, branch) = w.status("TrainableModel", "tiny")["tree"]["branches"]
            assert (branch["base"], branch["lastStep"]) == ("tiny-000001", 4)

    run(scenario())
