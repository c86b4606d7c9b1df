"""The contract with kstatus: each kind, in each situation, as the operator really writes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from tests.kstatus.compute import CURRENT, FAILED, IN_PROGRESS, compute
from tests.simulation.scenarios import story
from tests.simulation.virtual_time import run
from tests.simulation.world import World, head_spec, model_spec, run_spec, world

from espalier.core.names import adapter_name
from espalier.kube.objects import Body, ObjectKey

KINDS = ("TrainableModel", "TrainingRun", "CheckpointHead", "Checkpoint")
GAVE_UP = {"detail": "no dataset", "reason": "UnknownDataset"}
IMAGE = {"reason": "ImagePullBackOff", "message": "no such image"}


async def begin(w: World, steps: int = 2, **changes: Any) -> None:
    await w.apply("TrainableModel", "tiny", model_spec())
    await w.apply("TrainingRun", "digits", run_spec("tiny", steps, **changes))


async def reason(w: World, kind: str, name: str, wanted: str) -> None:
    await w.until(lambda: w.condition(kind, name, "Ready")["reason"] == wanted, wanted)


async def trained(w: World) -> None:
    await begin(w)
    await reason(w, "TrainingRun", "digits", "Succeeded")
    await w.until(lambda: w.current("tiny") == "tiny-000002", "served")


async def importing(w: World) -> None:
    w.kubelet.waiting["importer"] = IMAGE
    await w.apply("TrainableModel", "tiny", model_spec())


async def serving(w: World) -> None:
    await w.apply("TrainableModel", "tiny", model_spec())


async def waiting_for_image(w: World) -> None:
    w.kubelet.waiting["rollout"] = IMAGE
    await w.apply("TrainableModel", "tiny", model_spec())


async def importer_gives_up(w: World) -> None:
    w.kubelet.giving_up["importer"] = GAVE_UP
    await w.apply("TrainableModel", "tiny", model_spec())


async def name_taken(w: World) -> None:
    await w.apply("TrainableModel", "other", model_spec())
    await w.apply("CheckpointHead", "tiny", head_spec("other", "Track"))
    await w.apply("TrainableModel", "tiny", model_spec())


async def training(w: World) -> None:
    w.trains = False
    await begin(w)


async def starting(w: World) -> None:
    w.kubelet.waiting["trainer"] = IMAGE
    await begin(w)


async def restarting(w: World) -> None:
    await trained(w)
    w.kubelet.waiting["runner"] = IMAGE
    await w.apply("TrainingRun", "digits", run_spec("tiny", 9))


async def queued(w: World) -> None:
    await training(w)
    await w.apply("TrainingRun", "second", run_spec("tiny", 2))


async def queued_for_quota(w: World) -> None:
    await w.apply("TrainableModel", "tiny", model_spec(jobs={"template": {"queueName": "gpus"}}))


async def suspended(w: World) -> None:
    await begin(w, suspend=True)


async def paused_by_a_pin(w: World) -> None:
    await trained(w)
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Pin", "tiny-000001"))
    await w.apply("TrainingRun", "digits", run_spec("tiny", 5))


async def runner_gives_up(w: World) -> None:
    w.kubelet.giving_up["runner"] = GAVE_UP
    await begin(w)


async def run_without_model(w: World) -> None:
    await w.apply("TrainingRun", "digits", run_spec("tiny", 2))


async def pinned(w: World) -> None:
    await trained(w)
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Pin", "tiny-000001"))
    await w.until(lambda: w.current("tiny") == "tiny-000001", "pinned")


async def moving(w: World) -> None:
    """All rollouts are gone while a pin waits for them."""
    await trained(w)
    w.kubelet.waiting["rollout"] = IMAGE
    await w.kubelet.restart("rollout")
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Pin", "tiny-000001"))


async def pinned_to_nothing(w: World) -> None:
    await trained(w)
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Pin", "tiny-000099"))


async def pinned_to_damage(w: World) -> None:
    await trained(w)
    digest = w.get("Checkpoint", "tiny-000001")["spec"]["digest"]
    w.rollouts.broken.add(adapter_name("tiny", digest))
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Pin", "tiny-000001"))


async def head_without_model(w: World) -> None:
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track"))


async def lie(w: World) -> None:
    await trained(w)
    spec = {**w.get("Checkpoint", "tiny-000002")["spec"], "step": 3, "uri": "volume://../etc"}
    await w.apply("Checkpoint", "tiny-000003", spec)


@dataclass(frozen=True)
class Row:
    """What is to be seen of an object in a situation: Ready as status/reason, then what is True."""

    situation: Callable[[World], Awaitable[None]]
    kind: str
    name: str
    ready: str
    verdict: str
    also: tuple[str, ...] = ()


ROWS = {
    "model, importing": Row(
        importing, "TrainableModel", "tiny", "False/ImagePullBackOff", IN_PROGRESS
    ),
    "model, serving": Row(serving, "TrainableModel", "tiny", "True/Ready", CURRENT),
    "model, rollouts wait": Row(
        waiting_for_image, "TrainableModel", "tiny", "False/ImagePullBackOff", IN_PROGRESS
    ),
    "model, queued for quota": Row(
        queued_for_quota, "TrainableModel", "tiny", "Unknown/Queued", IN_PROGRESS
    ),
    "model, base unreadable": Row(
        importer_gives_up, "TrainableModel", "tiny", "False/UnknownDataset", FAILED
    ),
    "model, its head's name taken": Row(
        name_taken, "TrainableModel", "tiny", "False/HeadNameTaken", FAILED
    ),
    "run, queued": Row(queued, "TrainingRun", "second", "Unknown/ModelBusy", IN_PROGRESS),
    "run, starting": Row(starting, "TrainingRun", "digits", "False/ImagePullBackOff", IN_PROGRESS),
    "run, training": Row(training, "TrainingRun", "digits", "True/Training", CURRENT),
    "run, restarting": Row(
        restarting, "TrainingRun", "digits", "False/ImagePullBackOff", IN_PROGRESS
    ),
    "run, suspended": Row(
        suspended, "TrainingRun", "digits", "True/Suspended", CURRENT, ("Suspended",)
    ),
    "run, paused by a pin": Row(
        paused_by_a_pin, "TrainingRun", "digits", "True/HeadPinned", CURRENT, ("Suspended",)
    ),
    "run, failed for good": Row(
        runner_gives_up, "TrainingRun", "digits", "False/UnknownDataset", FAILED
    ),
    "run, no such model": Row(
        run_without_model, "TrainingRun", "digits", "False/ModelNotFound", IN_PROGRESS
    ),
    "run, done": Row(trained, "TrainingRun", "digits", "True/Succeeded", CURRENT, ("Succeeded",)),
    "head, tracking": Row(trained, "CheckpointHead", "tiny", "True/Tracking", CURRENT),
    "head, pinned": Row(pinned, "CheckpointHead", "tiny", "True/Pinned", CURRENT, ("Pinned",)),
    "head, moving": Row(
        moving, "CheckpointHead", "tiny", "False/RolloutsNotReady", IN_PROGRESS, ("Pinned",)
    ),
    "head, pin cannot resolve": Row(
        pinned_to_nothing, "CheckpointHead", "tiny", "False/CheckpointNotFound", FAILED
    ),
    "head, pin to damage": Row(
        pinned_to_damage, "CheckpointHead", "tiny", "False/FileAltered", FAILED, ("Pinned",)
    ),
    "head, no such model": Row(
        head_without_model, "CheckpointHead", "tiny", "False/ModelNotFound", IN_PROGRESS
    ),
    "checkpoint, served": Row(trained, "Checkpoint", "tiny-000002", "True/Committed", CURRENT),
    "checkpoint, damaged": Row(
        pinned_to_damage, "Checkpoint", "tiny-000001", "False/FileAltered", FAILED
    ),
    "checkpoint, untrue": Row(lie, "Checkpoint", "tiny-000003", "False/InvalidURI", FAILED),
}
SHOWN = ("Suspended", "Succeeded", "Pinned")


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_kstatus_reads_the_object_as_the_situation_is(row: Row) -> None:
    async def scenario() -> None:
        async with world() as w:
            await row.situation(w)
            await w.until(lambda: ready(w.get(row.kind, row.name)) == row.ready, row.ready)
            body = w.get(row.kind, row.name)
            assert compute(body) == row.verdict
            assert body["status"]["observedGeneration"] == body["metadata"]["generation"]
            said = {c["type"]: c["status"] for c in body["status"]["conditions"]}
            assert (said.get("Reconciling") == "True") == (row.verdict == IN_PROGRESS)
            assert (said.get("Stalled") == "True") == (row.verdict == FAILED)
            assert {type_ for type_ in SHOWN if said.get(type_) == "True"} == set(row.also)
            # Edited and not seen yet: whatever was said before, it is in progress.
            body["metadata"]["generation"] += 1
            assert compute(body) == IN_PROGRESS

    run(scenario())


def ready(body: Body) -> str:
    found = {c["type"]: c for c in body.get("status", {}).get("conditions", [])}
    return f"{found['Ready']['status']}/{found['Ready']['reason']}" if "Ready" in found else ""


def test_no_status_that_is_ever_written_contradicts_itself() -> None:
    async def scenario() -> None:
        wrong = []

        def check(_: str, body: Body) -> None:
            if body["kind"] in KINDS and body.get("status"):
                wrong.extend(f"{body['metadata']['name']}: {fault}" for fault in faults(body))

        async with world() as w:
            w.cluster.watch(check)
            await story(w)
            seen = {key.kind for key in w.cluster.objects if isinstance(key, ObjectKey)}
        assert set(KINDS) <= seen
        assert wrong == []

    run(scenario())


def faults(body: Body) -> list[str]:
    """How the conditions of an object contradict one another."""
    status = body["status"]
    said = {c["type"]: c["status"] for c in status.get("conditions", [])}
    found = []
    if "Ready" not in said:
        found.append("no Ready")
    if said.get("Reconciling") == said.get("Stalled") == "True":
        found.append("Reconciling and Stalled")
    if said.get("Ready") == "True" and "True" in (said.get("Reconciling"), said.get("Stalled")):
        found.append("Ready, and yet not at rest")
    if said.get("Ready") != "True" and "True" not in (said["Reconciling"], said["Stalled"]):
        found.append("not Ready for no reason")
    generations = {c.get("observedGeneration") for c in status.get("conditions", [])}
    if generations != {status["observedGeneration"]}:
        found.append(f"conditions of generations {generations}")
    return found
