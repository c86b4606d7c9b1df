"""A run goes on through an upgrade of the operator without losing a step."""

from __future__ import annotations

import pytest
from tests.simulation.life import Life
from tests.simulation.virtual_time import run
from tests.simulation.world import IMAGES, World, model_spec, run_spec, world

from espalier.core.manifests.installation import Images

STEPS = 6
NEWER = Images(trainer="trainer:2", rollout="rollout:2", runner="runner:2")
WORKLOADS = ("StatefulSet", "Deployment", "Job")


async def training(w: World, steps: int) -> None:
    await w.apply("TrainableModel", "tiny", model_spec())
    await w.apply("TrainingRun", "digits", run_spec("tiny", STEPS))
    await w.until_at(lambda: len(w.checkpoints("tiny")) >= steps, "it trains")


async def upgraded(w: World, images: Images) -> None:
    """The old operator ends, and a new one of these images starts after a while."""
    await w.kill()
    for _ in range(5):
        await w.kubelet.tick()
    w.images, w.life = images, Life()
    w.start()


async def finished(w: World) -> None:
    await w.until(
        lambda: w.condition("TrainingRun", "digits", "Succeeded")["status"] == "True",
        "the run succeeds",
    )
    assert w.status("TrainingRun", "digits")["step"] == STEPS
    assert w.checkpoints("tiny") == [f"tiny-{n:06d}" for n in range(1, STEPS + 1)]
    assert [c.run_step for c in w.trainer.volume("tiny").commits] == [*range(1, STEPS + 1)]


def image(w: World, kind: str, name: str) -> str:
    template = w.get(kind, name)["spec"]["template"]
    found: str = template["spec"]["containers"][0]["image"]
    return found


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_an_operator_of_the_same_images_touches_no_pod(steps: int) -> None:
    async def scenario() -> None:
        async with world() as w:
            await training(w, steps)
            await w.until_at(lambda: bool(w.kubelet.pods("trainer")), "the trainer is there")
            calls = len(w.cluster.calls)
            pods = {p["metadata"]["uid"] for p in w.kubelet.pods("trainer")}
            w.trains = False
            await upgraded(w, IMAGES)
            await w.rest(10)
            written = [key.name for verb, key in w.cluster.calls[calls:] if key.kind in WORKLOADS]
            assert [name for name in written if name == "tiny-trainer"] == []
            assert pods <= {p["metadata"]["uid"] for p in w.kubelet.pods("trainer")}
            w.trains = True
            await finished(w)

    run(scenario())


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_new_images_roll_the_pods_and_no_step_is_lost_or_taken_twice(steps: int) -> None:
    async def scenario() -> None:
        async with world() as w:
            await training(w, steps)
            await w.until_at(lambda: bool(w.kubelet.pods("trainer")), "the trainer is there")
            runner = w.get("Job", "digits-runner").get("metadata", {}).get("uid")
            await upgraded(w, NEWER)
            await w.until_at(
                lambda: image(w, "StatefulSet", "tiny-trainer") == "trainer:2", "the new image"
            )
            # Kubernetes replaces the pods of the old template.
            for role in ("trainer", "rollout"):
                for pod in w.kubelet.pods(role):
                    await w.delete("Pod", pod["metadata"]["name"])
            assert image(w, "Deployment", "tiny-rollout") == "rollout:2"
            await finished(w)
            # A runner's Job cannot be changed: the one that runs ends its run.
            assert not runner or w.get("Job", "digits-runner")["metadata"]["uid"] == runner

    run(scenario())
