"""Objects of a newer version of the CRDs under an older operator."""

from __future__ import annotations

from typing import Any

import pytest
from tests.simulation.scenarios import train
from tests.simulation.virtual_time import run
from tests.simulation.world import World, head_spec, model_spec, run_spec, world

from espalier.kube.objects import ObjectKey

NEWER = {
    "TrainableModel": ("poor", "spec.quantization", lambda s: s.update(quantization={"bits": 4})),
    "TrainingRun": ("poor-run", "spec.loss.schedule", lambda s: s["loss"].update(schedule="cos")),
    "CheckpointHead": ("poor", "spec.mode", lambda s: s.update(mode="Mirror")),
}


def stalled(w: World, kind: str, name: str) -> dict[str, Any]:
    found = w.condition(kind, name, "Stalled")
    return found if found["status"] == "True" else {"reason": "", "message": ""}


@pytest.mark.parametrize("kind", NEWER)
def test_a_field_that_is_not_known_is_named_and_hurts_no_other_model(kind: str) -> None:
    name, field, change = NEWER[kind]

    async def scenario() -> None:
        async with world() as w:
            await w.apply("CheckpointHead", "poor", head_spec("poor", "Track"))
            await w.apply("TrainableModel", "poor", model_spec())
            await w.apply("TrainingRun", "poor-run", run_spec("poor", 1))
            key = ObjectKey(kind, "default", name)
            known = w.get(kind, name)["spec"]
            w.cluster.edit(key, lambda body: change(body["spec"]))
            w.laws.by_user(key)
            await train(w)
            said = stalled(w, kind, name)
            assert said["reason"] == "UnknownField"
            assert said["message"].startswith(f"{field}: ")
            assert "upgrade it, or remove the field" in said["message"]
            changes = w.changes
            await w.rest(20, seconds=1.0)
            assert w.changes == changes
            w.cluster.edit(key, lambda body: body.update(spec=known))
            w.laws.by_user(key)
            await w.until(lambda: w.succeeded("poor-run", 1), "it is understood again")

    run(scenario())


def test_a_status_of_a_newer_operator_is_no_obstacle() -> None:
    async def scenario() -> None:
        async with world() as w:
            await train(w)
            for kind in ("TrainableModel", "CheckpointHead"):
                w.cluster.edit(
                    ObjectKey(kind, "default", "tiny"),
                    lambda body: body["status"].update(shards=3, conditions=[]),
                )
            checkpoint = ObjectKey("Checkpoint", "default", "tiny-000002")
            w.cluster.edit(
                checkpoint, lambda body: body["status"]["conditions"][0].update(severity="Info")
            )
            await w.apply("TrainingRun", "digits", run_spec("tiny", 3))
            await w.until(lambda: w.succeeded("digits", 3), "training goes on")
            assert w.serves("tiny", "tiny-000003")

    run(scenario())


def test_a_checkpoint_that_is_not_understood_stops_only_its_own_model() -> None:
    async def scenario() -> None:
        async with world() as w:
            await train(w)
            key = ObjectKey("Checkpoint", "default", "tiny-000002")
            w.cluster.edit(key, lambda body: body["spec"].update(quantization="int4"))
            await w.until(
                lambda: stalled(w, "Checkpoint", "tiny-000002")["reason"] == "UnknownField", "told"
            )
            assert (
                "Checkpoint tiny-000002: spec.quantization"
                in (stalled(w, "CheckpointHead", "tiny")["message"])
            )
            assert w.current("tiny") == "tiny-000002"
            await w.apply("TrainableModel", "other", model_spec())
            await w.apply("TrainingRun", "others", run_spec("other", 1))
            await w.until(lambda: w.succeeded("others", 1), "the other model trains")
            w.cluster.edit(key, lambda body: body["spec"].pop("quantization"))
            await w.until(lambda: w.serves("tiny", "tiny-000002"), "understood")
            assert stalled(w, "Checkpoint", "tiny-000002")["reason"] == ""

    run(scenario())
