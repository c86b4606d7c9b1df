"""Tinker's unmodified SDK against gateway, operator and real trainers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.compat.stage import Stage
from tests.tinker.conftest import BASE
from tests.tinker.scenarios import drive

from espalier.kube.objects import Body

pytestmark = pytest.mark.timeout(900)


def checkpoints(stage: Stage, model: str) -> dict[str, Body]:
    found = {
        key.name: body for key, body in stage.cluster.objects.items() if key.kind == "Checkpoint"
    }
    return {name: body for name, body in found.items() if body["spec"]["modelRef"]["name"] == model}


def trained(model: str) -> str:
    """The TrainableModel of a model's id."""
    session, _, number = model.partition(":train:")
    return f"tk-{session.rpartition('.')[2]}-{number}"


def saves(body: Body) -> list[str]:
    return [one["path"].partition("/")[2] for one in body.get("status", {}).get("saves", [])]


async def test_rl_loop_samples_trains_saves_and_goes_on_from_what_it_saved(
    stage: Stage, key: str, tmp_path: Path
) -> None:
    told = await drive(stage.url, key, tmp_path, "loops", base=BASE)
    name = trained(told["model"])
    made = checkpoints(stage, name)
    assert sorted(made) == [f"{name}-{step:06d}" for step in (1, 2, 3)]
    assert saves(made[f"{name}-000002"]) == ["sampler_weights/two", "weights/two"]
    assert saves(stage.body("TrainingRun", name)) == ["sampler_weights/000000"]
    assert told["paths"][1] == f"tinker://{told['model']}/weights/two"
    # Each sampler samples its own weights.
    asked = [body["model"].partition("@")[0] for body in stage.sampled]
    digests = [made[f"{name}-{step:06d}"]["spec"]["digest"][7:19] for step in (1, 2)]
    assert asked == ["base", name, name, name]
    refs = [body["model"].partition("@")[2] for body in stage.sampled]
    assert refs == ["", digests[0], digests[1], digests[1]]
    assert told["before"] != told["after"]
    # Both stand where they were saved, and only one has the optimizer's state.
    assert told["loaded"][0] == told["loaded"][1] == pytest.approx(told["after"], abs=1e-6)
    stepped = told["stepped"]
    assert stepped[1] == pytest.approx(stepped[0], abs=1e-6)
    assert stepped[2] != pytest.approx(stepped[0], abs=1e-6)
    assert told["forked"] == f"tinker://{told['resumed']}/sampler_weights/three"
    parents = {
        body["spec"]["parentRef"]["name"]
        for body in checkpoints(stage, trained(told["resumed"])).values()
    }
    assert parents == {f"{name}-000002"}

    await stage.stop_gateway()
    await stage.start_gateway()
    kept = await drive(
        *(stage.url, key, tmp_path, "keeps"),
        **{"model": told["model"], "state": told["paths"][1], "named": told["paths"][2]},
    )
    assert sorted(kept["listed"]) == [
        ["sampler_weights/000000", "sampler", True],
        ["sampler_weights/two", "sampler", True],
        ["weights/two", "training", False],
    ]
    assert (kept["mine"], kept["session"], kept["last"]) == (4, 3, True)
    assert kept["info"]["base_model"] == BASE
    assert (kept["info"]["lora_rank"], kept["info"]["train_unembed"]) == (4, False)
    assert sorted(kept["left"]) == [["sampler_weights/000000", True], ["weights/two", True]]
    assert kept["gone"] == "NotFoundError"
    assert kept["public"]["kind"] == "UnprocessableEntityError"
    assert "never public here" in kept["public"]["says"]


async def test_what_dies_in_the_middle_of_training_changes_nothing(
    stage: Stage, key: str, tmp_path: Path
) -> None:
    calm = await drive(stage.url, key, tmp_path, "resumes", base=BASE, steps=6)
    work = asyncio.create_task(drive(stage.url, key, tmp_path, "resumes", base=BASE, steps=6))
    first = trained(calm["model"])

    def other() -> str:
        names = {t.model for t in stage.trainers.values() if t.engine is not None}
        return next(iter(names - {first}), "")

    def stepped(count: int) -> Any:
        return lambda: other() and stage.steps(other()) >= count

    await stage.until(stepped(1), "a step")
    await stage.restart_trainer(other())
    await stage.until(stepped(2), "another step")
    await stage.stop_gateway()
    await asyncio.sleep(0.2)
    await stage.start_gateway()
    await stage.until(stepped(4), "two more")
    stage.relay.cut()
    shaken = await work
    assert stage.steps(other()) == stage.steps(first) == 6
    assert shaken["scores"] == calm["scores"]
    assert saves(checkpoints(stage, other())[f"{other()}-000006"]) == ["weights/end"]


async def test_a_model_that_there_is_is_trained_and_its_head_sampled_by_its_name(
    stage: Stage, key: str, tmp_path: Path
) -> None:
    await stage.model("arith")
    await stage.training("arith")
    told = await drive(stage.url, key, tmp_path, "trains_existing", name="arith")
    assert told["wrong"]["kind"] == "RequestFailedError"
    assert "lora_config.rank: the model has 4, not 32" in told["wrong"]["says"]
    assert told["model"].endswith(".arith:train:1")
    assert (told["sampled"], told["head"]) == (2, 2)
    assert list(checkpoints(stage, "arith")) == ["arith-000001"]


async def test_a_custom_loss_trains_and_a_refused_command_stops_none_after_it(
    stage: Stage, key: str, tmp_path: Path
) -> None:
    told = await drive(stage.url, key, tmp_path, "custom_loss", base=BASE)
    assert set(told["metrics"]) >= {"mean", "loss:sum"}
    assert all(told["metrics"].values())
    refused = told["refused"]
    assert "target_tokens" in refused["lengths"]["says"]
    assert (refused["name"]["kind"], refused["name"]["category"]) == ("RequestFailedError", "user")
    assert "path is 'a/b'" in refused["name"]["says"]
    assert "ttl_seconds" in refused["life"]["says"]
    assert refused["empty"]["category"] == "user"
    assert told["after"]
