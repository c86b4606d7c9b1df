"""A user's mistake ends in a condition with reason and remedy; nothing is started for ever."""

from __future__ import annotations

import pytest
from tests.simulation.virtual_time import run
from tests.simulation.world import World, head_spec, model_spec, run_spec, world

from espalier.api.wire.problem import Problem
from espalier.core.names import adapter_name

TYPO = {
    "detail": "taskset.reasoningGym.dataset: no dataset no_such",
    "reason": "UnknownDataset",
    "remedy": "Choose one of reasoning-gym's",
}


def waits_for_model(w: World, kind: str, name: str) -> bool:
    said = w.condition(kind, name, "Reconciling")
    return (said["status"], said["reason"]) == ("True", "ModelNotFound")


def is_ready(w: World, name: str) -> bool:
    return w.condition("TrainableModel", name, "Ready")["status"] == "True"


def is_stalled(w: World, kind: str, name: str) -> bool:
    return w.condition(kind, name, "Stalled")["status"] == "True"


def test_a_runner_that_gives_up_stalls_the_run_until_it_is_edited() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.kubelet.giving_up["runner"] = TYPO
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.apply("TrainingRun", "typo", run_spec("tiny", 1))
            await w.until(lambda: is_stalled(w, "TrainingRun", "typo"), "Stalled")
            said = w.condition("TrainingRun", "typo", "Stalled")
            assert said["reason"] == "UnknownDataset"
            assert "taskset.reasoningGym.dataset" in said["message"]
            assert w.condition("TrainingRun", "typo", "Succeeded")["status"] == "False"
            job = w.get("Job", "typo-runner")["metadata"]["uid"]
            await w.rest()
            assert w.get("Job", "typo-runner")["metadata"]["uid"] == job
            assert not w.kubelet.pods("trainer")
            w.kubelet.giving_up.clear()
            await w.apply("TrainingRun", "typo", run_spec("tiny", 1, groupSize=4))
            await w.until(
                lambda: w.condition("TrainingRun", "typo", "Succeeded")["status"] == "True",
                "the edited run succeeds",
            )

    run(scenario())


def test_a_run_that_gave_up_does_not_hold_the_model() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.kubelet.giving_up["runner"] = TYPO
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.apply("TrainingRun", "a-typo", run_spec("tiny", 1))
            await w.until(lambda: is_stalled(w, "TrainingRun", "a-typo"), "Stalled")
            w.kubelet.giving_up.clear()
            await w.apply("TrainingRun", "b-good", run_spec("tiny", 1))
            await w.until(
                lambda: w.condition("TrainingRun", "b-good", "Succeeded")["status"] == "True",
                "the other run succeeds",
            )

    run(scenario())


@pytest.mark.parametrize(
    ("role", "workload"), [("rollout", "Deployment"), ("trainer", "StatefulSet")]
)
def test_a_server_that_gives_up_is_not_started_again_before_an_edit(
    role: str, workload: str
) -> None:
    async def scenario() -> None:
        async with world() as w:
            w.kubelet.giving_up[role] = {"detail": "the base is damaged", "reason": "DigestWrong"}
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.apply("TrainingRun", "digits", run_spec("tiny", 1))
            await w.until(lambda: is_stalled(w, "TrainableModel", "tiny"), "Stalled")
            assert w.condition("TrainableModel", "tiny", "Stalled")["reason"] == "DigestWrong"
            await w.rest()
            assert is_stalled(w, "TrainableModel", "tiny")
            assert w.get(workload, f"tiny-{role}")["spec"]["replicas"] == 0
            assert w.condition("TrainingRun", "digits", "Stalled")["reason"] == "DigestWrong"
            w.kubelet.giving_up.clear()
            edited = {"maxModelTokens": 2048}
            await w.apply("TrainableModel", "tiny", model_spec(rollout=edited))
            await w.until(
                lambda: w.condition("TrainingRun", "digits", "Succeeded")["status"] == "True",
                "the edited model trains",
            )

    run(scenario())


def test_samplers_that_serve_go_on_beside_one_that_gives_up() -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.apply("TrainableModel", "tiny", model_spec(rollout={"replicas": 2}))
            await w.until(lambda: is_ready(w, "tiny"), "Ready")
            w.kubelet.giving_up["tiny-rollout-1"] = {"detail": "damaged", "reason": "DigestWrong"}
            await w.until(lambda: not is_ready(w, "tiny"), "one gives up")
            await w.rest()
            said = w.condition("TrainableModel", "tiny", "RolloutsReady")
            assert (said["status"], said["reason"]) == ("False", "DigestWrong")
            assert said["message"] == "1 of 2 ready. damaged"
            assert not is_stalled(w, "TrainableModel", "tiny")
            assert w.get("Deployment", "tiny-rollout")["spec"]["replicas"] == 2
            await w.apply("TrainingRun", "digits", run_spec("tiny", 1))
            await w.until(
                lambda: w.condition("TrainingRun", "digits", "Succeeded")["status"] == "True",
                "the run succeeds by the other",
            )
            w.kubelet.giving_up.clear()
            await w.kubelet.evict("rollout")
            await w.until(lambda: is_ready(w, "tiny"), "Ready again without an edit")

    run(scenario())


def test_one_that_is_loading_is_not_ended_for_another_that_gives_up() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.kubelet.waiting["rollout"] = {"reason": "ContainerCreating"}
            await w.apply("TrainableModel", "tiny", model_spec(rollout={"replicas": 2}))
            await w.until(lambda: len(w.kubelet.pods("rollout")) == 2, "two are made")
            w.kubelet.giving_up["tiny-rollout-1"] = {"detail": "damaged", "reason": "DigestWrong"}
            await w.rest()
            said = w.condition("TrainableModel", "tiny", "RolloutsReady")
            assert (said["reason"], said["message"]) == ("DigestWrong", "0 of 2 ready. damaged")
            assert not is_stalled(w, "TrainableModel", "tiny")
            w.kubelet.giving_up["tiny-rollout-0"] = {"detail": "damaged", "reason": "DigestWrong"}
            await w.until(lambda: is_stalled(w, "TrainableModel", "tiny"), "both gave up")
            assert w.get("Deployment", "tiny-rollout")["spec"]["replicas"] == 0

    run(scenario())


def test_an_importer_that_gives_up_stalls_the_model() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.kubelet.giving_up["importer"] = {
                "detail": "no config.json",
                "reason": "BaseUnreadable",
            }
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.until(lambda: is_stalled(w, "TrainableModel", "tiny"), "Stalled")
            said = w.condition("TrainableModel", "tiny", "SourceResolved")
            assert (said["status"], said["reason"]) == ("False", "BaseUnreadable")
            w.kubelet.giving_up.clear()
            await w.delete("Job", "tiny-import")
            await w.until(
                lambda: w.condition("TrainableModel", "tiny", "Ready")["status"] == "True",
                "a new Job imports it",
            )

    run(scenario())


def test_an_adapter_that_does_not_fit_stalls_the_model_with_field_and_remedy() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.kubelet.giving_up["importer"] = {
                "detail": "spec.adapter.rank is 16, the adapter's is 8",
                "reason": "AdapterMismatch",
                "remedy": "create the model with spec.adapter.rank: 8",
            }
            source = {
                "base": {"image": "registry.example/tiny:1"},
                "adapter": {"image": "registry.example/lora:1"},
            }
            await w.apply("TrainableModel", "tiny", model_spec(source=source))
            await w.until(lambda: is_stalled(w, "TrainableModel", "tiny"), "Stalled")
            said = w.condition("TrainableModel", "tiny", "Stalled")
            assert said["reason"] == "AdapterMismatch"
            assert "create the model with spec.adapter.rank: 8" in said["message"]
            assert w.checkpoints("tiny") == []

    run(scenario())


def test_a_full_volume_stalls_the_run_until_there_is_room() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.trains = False
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.apply("TrainingRun", "digits", run_spec("tiny", 1))
            await w.until(
                lambda: w.condition("TrainingRun", "digits", "Ready")["reason"] == "Training",
                "it trains",
            )
            w.trainer.problem = Problem(
                detail="no space left", reason="VolumeFull", remedy="Enlarge the claim"
            )
            await w.until(lambda: is_stalled(w, "TrainingRun", "digits"), "Stalled")
            assert "Enlarge the claim" in w.condition("TrainingRun", "digits", "Ready")["message"]
            said = w.condition("TrainableModel", "tiny", "VolumeHealthy")
            assert (said["status"], said["reason"]) == ("False", "VolumeFull")
            # The trainer must stay, for a step that is sent again is what finds the room.
            assert w.condition("TrainableModel", "tiny", "Ready")["status"] == "True"
            assert w.get("StatefulSet", "tiny-trainer")["spec"]["replicas"] == 1
            w.trainer.problem, w.trains = None, True
            await w.until(
                lambda: w.condition("TrainingRun", "digits", "Succeeded")["status"] == "True",
                "training goes on",
            )
            await w.until(lambda: not w.kubelet.pods("trainer"), "the trainer is idle")
            said = w.condition("TrainableModel", "tiny", "VolumeHealthy")
            assert (said["status"], said["reason"]) == ("Unknown", "NoTrainer")
            events = [e for e in w.events("TrainableModel", "tiny") if e["reason"] == "VolumeFull"]
            assert [e["type"] for e in events] == ["Warning"]

    run(scenario())


def test_a_padded_path_is_a_condition_and_an_event_and_holds_nothing_up() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.trainer.warnings = [
                Problem(
                    detail="the fast path does not know the family phi",
                    reason="UnknownFamily",
                    remedy="use a base of Llama",
                )
            ]
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.until(
                lambda: w.condition("TrainableModel", "tiny", "Ready")["status"] == "True", "Ready"
            )
            assert w.condition("TrainableModel", "tiny", "FastPath")["reason"] == "NotLoaded"
            await w.apply("TrainingRun", "digits", run_spec("tiny", 2))
            await w.until(
                lambda: w.condition("TrainingRun", "digits", "Succeeded")["status"] == "True",
                "it trains all the same",
            )
            said = w.condition("TrainableModel", "tiny", "FastPath")
            assert (said["status"], said["reason"]) == ("False", "UnknownFamily")
            assert "family phi. use a base of Llama" in said["message"]
            assert w.condition("TrainableModel", "tiny", "Ready")["status"] == "True"
            assert w.condition("TrainableModel", "tiny", "Stalled")["status"] == "False"
            told = [e for e in w.events("TrainableModel", "tiny") if "family phi" in e["message"]]
            assert [(e["type"], e["reason"]) for e in told] == [("Warning", "UnknownFamily")]
            # Another trainer, whose base the fast path knows by now.
            w.trainer.warnings = []
            await w.apply("TrainingRun", "again", run_spec("tiny", 1))
            await w.until(
                lambda: w.condition("TrainingRun", "again", "Succeeded")["status"] == "True",
                "it trains",
            )
            said = w.condition("TrainableModel", "tiny", "FastPath")
            assert (said["status"], said["reason"]) == ("True", "SelfCheckEqual")
            told = [e for e in w.events("TrainableModel", "tiny") if "FastPath" in e["message"]]
            assert [(e["type"], e["reason"]) for e in told] == [("Normal", "SelfCheckEqual")]

    run(scenario())


def test_a_trainer_that_refuses_its_assignment_stalls_the_run_until_it_takes_it() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.trainer.refusal = Problem(detail="a shard is missing", reason="CheckpointDamaged")
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.apply("TrainingRun", "digits", run_spec("tiny", 1))
            await w.until(lambda: is_stalled(w, "TrainingRun", "digits"), "Stalled")
            assert w.condition("TrainingRun", "digits", "Stalled")["reason"] == "CheckpointDamaged"
            w.trainer.refusal = None
            await w.until(
                lambda: w.condition("TrainingRun", "digits", "Succeeded")["status"] == "True",
                "training begins",
            )

    run(scenario())


@pytest.mark.parametrize("role", ["trainer", "rollout"])
def test_what_a_pod_waits_for_is_said(role: str) -> None:
    async def scenario() -> None:
        async with world() as w:
            reason = {"reason": "ImagePullBackOff", "message": "no such image"}
            w.kubelet.waiting[role] = reason
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.apply("TrainingRun", "digits", run_spec("tiny", 1))
            type_ = "TrainerReady" if role == "trainer" else "RolloutsReady"
            await w.until(
                lambda: (
                    w.condition("TrainableModel", "tiny", type_)["reason"] == "ImagePullBackOff"
                ),
                "the reason shows",
            )
            ready = w.condition("TrainableModel", "tiny", "Ready")
            assert (ready["status"], ready["reason"]) == ("False", "ImagePullBackOff")
            assert "no such image" in ready["message"]
            assert w.condition("TrainableModel", "tiny", "Reconciling")["status"] == "True"

    run(scenario())


def test_a_damaged_checkpoint_leaves_the_head_where_it_is() -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.apply("TrainingRun", "digits", run_spec("tiny", 2))
            await w.until(lambda: w.current("tiny") == "tiny-000002", "trained")
            digest = w.get("Checkpoint", "tiny-000001")["spec"]["digest"]
            w.rollouts.broken.add(adapter_name("tiny", digest))
            await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Pin", "tiny-000001"))
            await w.rest()
            said = w.condition("CheckpointHead", "tiny", "Ready")
            assert (said["status"], said["reason"]) == ("False", "FileAltered")
            assert "is damaged" in said["message"]
            assert is_stalled(w, "CheckpointHead", "tiny")
            assert w.current("tiny") == "tiny-000002"
            assert w.status("CheckpointHead", "tiny")["target"]["name"] == "tiny-000001"
            assert w.condition("Checkpoint", "tiny-000001", "Ready")["reason"] == "FileAltered"
            w.rollouts.broken.clear()
            await w.until(lambda: w.current("tiny") == "tiny-000001", "repaired and read back")
            assert w.condition("Checkpoint", "tiny-000001", "Ready")["status"] == "True"
            assert w.condition("CheckpointHead", "tiny", "Ready")["reason"] == "Pinned"

    run(scenario())


def test_a_run_or_head_of_a_model_that_is_not_there_says_so_and_recovers() -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.apply("TrainingRun", "digits", run_spec("tiny", 1))
            await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track"))
            for kind, name in (("TrainingRun", "digits"), ("CheckpointHead", "tiny")):
                await w.until(lambda k=kind, n=name: waits_for_model(w, k, n), "it says so")
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.until(
                lambda: w.condition("TrainingRun", "digits", "Succeeded")["status"] == "True",
                "all is there",
            )

    run(scenario())
