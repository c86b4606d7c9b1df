"""Which folders of other models the pods of a model mount, as forks and runs come and go."""

from __future__ import annotations

from tests.simulation.kubelet import Body, mounts
from tests.simulation.test_lifecycle import succeeded, trained
from tests.simulation.virtual_time import run
from tests.simulation.world import World, model_spec, run_spec, world

from espalier.api.wire.trainer import Assignment, TrainerState
from espalier.controllers.peers.peer import Peer
from espalier.core.checkpoints.commits import RUN_SEPARATOR

TEACHER = {"reference": {"checkpointRef": {"name": "tiny-000002"}}}


def folders(w: World, kind: str, name: str) -> set[str]:
    """The folders of checkpoints that the pods of a workload mount."""
    return checkpoint_folders(w.get(kind, name)["spec"]["template"]["spec"])


def checkpoint_folders(pod: Body) -> set[str]:
    paths = (mount.get("subPath", "") for mount in mounts(pod))
    return {path.removeprefix("checkpoints/") for path in paths if path.startswith("checkpoints/")}


def recorded(w: World) -> dict[str, list[set[str]]]:
    """By run, the folders that each trainer sees that is assigned it."""
    found: dict[str, list[set[str]]] = {}
    assign = w.trainer.assign

    async def recording(peer: Peer, assignment: Assignment) -> TrainerState:
        name = assignment.run.partition(RUN_SEPARATOR)[0]
        (pod,) = [p for p in w.kubelet.pods("trainer") if p["status"]["podIP"] == peer.ip]
        found.setdefault(name, []).append(checkpoint_folders(pod["spec"]))
        return await assign(peer, assignment)

    w.trainer.assign = recording  # type: ignore[method-assign]
    return found


def test_a_forks_pods_see_its_parents_folder_also_when_the_checkpoint_object_is_gone() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w)
            source = {"checkpointRef": {"name": "tiny-000002"}}
            await w.apply("TrainableModel", "fork", model_spec(source=source))
            await w.until(lambda: w.current("fork") == "tiny-000002", "the fork serves its origin")
            await w.apply("TrainingRun", "forked", run_spec("fork", 2))
            await w.until(lambda: succeeded(w, "forked", 2), "the fork trains")
            read = [{"checkpoint": "tiny-000002", "model": "tiny"}]
            for _ in range(2):
                assert w.status("TrainableModel", "fork")["reads"] == read
                assert folders(w, "Deployment", "fork-rollout") == {"fork", "tiny"}
                assert folders(w, "StatefulSet", "fork-trainer") == {"fork", "tiny"}
                assert folders(w, "Deployment", "tiny-rollout") == {"tiny"}
                await w.delete("Checkpoint", "tiny-000002")
                await w.rest()

    run(scenario())


def test_a_run_that_names_another_models_checkpoint_has_a_trainer_that_sees_it() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w)
            await w.apply("TrainableModel", "other", model_spec())
            await w.apply("TrainingRun", "a-plain", run_spec("other", 2))
            await w.apply("TrainingRun", "b-held", run_spec("other", 2, kl=TEACHER))
            seen = recorded(w)
            await w.until_at(
                lambda: bool(w.status("TrainableModel", "other").get("reads")), "known"
            )
            # Its bytes stay as long as a run names it.
            await w.delete("Checkpoint", "tiny-000002")
            await w.until_at(lambda: succeeded(w, "b-held", 2), "both runs succeed")
            assert seen["a-plain"] == [{"other"}]
            assert seen["b-held"] == [{"other", "tiny"}]
            assert folders(w, "Deployment", "other-rollout") == {"other"}
            await w.rest()
            assert not w.status("TrainableModel", "other").get("reads")
            assert folders(w, "StatefulSet", "other-trainer") == {"other"}

    run(scenario())
