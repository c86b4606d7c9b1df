"""Somebody who may create pods copies every label of ours: nothing is asked of such a pod, ever."""

from __future__ import annotations

import json

import pytest
from prometheus_client import REGISTRY
from tests.simulation.kubelet import RESOLVED
from tests.simulation.scripted import digest
from tests.simulation.virtual_time import run
from tests.simulation.world import NAMESPACE, World, model_spec, run_spec, world

from espalier.core.manifests.labels import Role, child_labels, main_container
from espalier.kube.objects import Body

FORGED_IP = "10.66.6.6"
LOADING = {"reason": "ContainerCreating", "message": ""}


def running(role: Role) -> Body:
    """The status of a role's pod that is ready."""
    main = {"name": main_container(role), "containerID": "containerd://66", "started": True}
    return {
        "phase": "Running",
        "podIP": FORGED_IP,
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{**main, "state": {"running": {}}}],
    }


def ended(role: Role, message: object) -> Body:
    """The status of a role's pod that has ended and left a message."""
    state = {"terminated": {"exitCode": 0, "message": json.dumps(message)}}
    main = {"name": main_container(role), "containerID": "containerd://66", "started": False}
    return {
        "phase": "Succeeded",
        "podIP": FORGED_IP,
        "conditions": [],
        "containerStatuses": [{**main, "state": state}],
    }


async def forge(w: World, role: Role, status: Body | None = None) -> None:
    """A pod with the labels of a role, whose name comes before those of the honest ones."""
    metadata = {"name": "aaa", "namespace": NAMESPACE, "labels": child_labels(role, "tiny")}
    spec = {"containers": [{"name": main_container(role)}]}
    body = {"metadata": metadata, "spec": spec, "status": status or running(role)}
    await w.cluster.create("Pod", body)


def ignored(role: str, reason: str = "NoController") -> float:
    found = REGISTRY.get_sample_value(
        "espalier_pods_ignored_total", {"role": role, "reason": reason}
    )
    return found or 0.0


def test_a_forged_trainer_is_told_nothing_though_the_honest_one_is_not_there_yet(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        before = ignored("trainer", "NameUnknown")
        async with world() as w:
            w.kubelet.waiting["trainer"] = LOADING
            await forge(w, "trainer")
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.apply("TrainingRun", "digits", run_spec("tiny", 2))
            await w.until(lambda: w.current("tiny") == "", "the base is served")
            await w.rest()
            assert w.trainer.asked == set()
            assert w.checkpoints("tiny") == []
            assert ignored("trainer", "NameUnknown") == before + 1
            del w.kubelet.waiting["trainer"]
            await w.delete("Pod", "tiny-trainer-0")
            await w.until(lambda: w.succeeded("digits", 2), "the honest one trains")
            assert FORGED_IP not in w.trainer.asked

    run(scenario())
    assert any(f"Pod {NAMESPACE}/aaa" in message for message in caplog.messages)


def test_a_forged_rollout_is_never_told_what_to_serve_nor_waited_for() -> None:
    async def scenario() -> None:
        before = ignored("rollout")
        async with world() as w:
            await forge(w, "rollout")
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.apply("TrainingRun", "digits", run_spec("tiny", 1))
            await w.until(lambda: w.serves("tiny", "tiny-000001"), "the honest one serves")
            assert FORGED_IP not in {ip for ip, _ in w.rollouts.told}
            assert ignored("rollout") == before + 1

    run(scenario())


def test_a_forged_importer_does_not_say_what_the_base_is() -> None:
    async def scenario() -> None:
        before = ignored("importer")
        async with world() as w:
            await w.apply("TrainableModel", "tiny", model_spec())
            w.kubelet.waiting["importer"] = LOADING
            await w.until(lambda: bool(w.kubelet.pods("importer")), "the importer is there")
            forged = ended("importer", {**RESOLVED, "digest": digest("forged")})
            await forge(w, "importer", forged)
            del w.kubelet.waiting["importer"]
            await w.until(lambda: w.current("tiny") == "", "the base is served")
            assert w.status("TrainableModel", "tiny")["resolved"]["digest"] == RESOLVED["digest"]
            assert ignored("importer") == before + 1

    run(scenario())
