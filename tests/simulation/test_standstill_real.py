"""What real controllers say of pods that they may not make, and what the objects make of it."""

from __future__ import annotations

import asyncio

import pytest
from tests.simulation.kubelet import RESOLVED
from tests.simulation.test_deletion_real import stage
from tests.simulation.test_process import Stage
from tests.simulation.world import model_spec, run_spec

from espalier.controllers.observed import blockers
from espalier.kube.objects import Body

__all__ = ["stage"]

NOBODYS = {"template": {"priorityClassName": "nope"}}
WORDS = "no PriorityClass with name nope was found"


def says(type_: str, body: Body) -> bool:
    """Whether the condition has the API server's words, and no name of a pod that changes."""
    for said in body.get("status", {}).get("conditions", ()):
        if said["type"] == type_ and said["reason"] == "FailedCreate":
            return WORDS in said["message"] and "the pod is forbidden" in said["message"]
    return False


async def test_pods_that_admission_refuses_are_named_on_model_and_run(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blockers, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(blockers, "LIST_SECONDS", 2.0)
    await stage.apply("TrainableModel", "importing", model_spec(jobs=NOBODYS))
    await stage.until("TrainableModel", "importing", lambda body: says("Ready", body))
    await stage.apply("TrainableModel", "m", model_spec(trainer=NOBODYS, rollout=NOBODYS))
    await stage.play("importer", "127.77.0.1", RESOLVED)
    await stage.until("TrainableModel", "m", lambda body: says("RolloutsReady", body))
    tasks = {"seed": 1, "reasoningGym": {"dataset": "chain_sum"}}
    await stage.apply("TrainingRun", "r", run_spec("m", 1, taskset=tasks))
    await stage.until("TrainableModel", "m", lambda body: says("TrainerReady", body))
    await stage.until("TrainingRun", "r", lambda body: says("Ready", body))
    # The Event follows the write of the status that it tells of.
    kinds: set[str] = set()
    for _ in range(200):
        kinds = await warned(stage)
        if {"TrainableModel", "TrainingRun"} <= kinds:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"Events about {kinds} alone")


async def test_in_a_cluster_without_kueue_no_pod_goes_past_its_queue(stage: Stage) -> None:
    queued = {"template": {"queueName": "research"}}
    await stage.apply("TrainableModel", "m", model_spec(rollout=queued))
    await stage.play("importer", "127.77.0.1", RESOLVED)

    def named(body: Body) -> bool:
        said = [c for c in body.get("status", {}).get("conditions", ()) if c["type"] == "Ready"]
        words = "in LocalQueue research: the cluster does not know Kueue's kind Workload"
        return any(c["reason"] == "QueueUnavailable" and words in c["message"] for c in said)

    await stage.until("TrainableModel", "m", named)
    labels = {"espalier.dev/role": "rollout"}
    (pod,) = await stage.cluster.list("Pod", stage.namespace, labels)
    assert pod["spec"]["schedulingGates"] == [{"name": "kueue.x-k8s.io/admission"}]


async def warned(stage: Stage) -> set[str]:
    """The kinds of objects that our own Events of this reason are about."""
    events = await stage.cluster.list("Event", stage.namespace, fields={"type": "Warning"})
    return {
        event["involvedObject"]["kind"]
        for event in events
        if event["reason"] == "FailedCreate"
        and event.get("source", {}).get("component") == "espalier"
    }
