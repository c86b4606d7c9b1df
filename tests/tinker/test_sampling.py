"""Tinker's unmodified SDK against the gateway: sampling clients."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tests.compat.stage import Stage
from tests.tinker.conftest import BASE
from tests.tinker.scenarios import drive

pytestmark = pytest.mark.timeout(600)


async def test_a_base_is_sampled_with_all_that_a_request_can_ask_for(
    stage: Stage, key: str, tmp_path: Path
) -> None:
    told = await drive(stage.url, key, tmp_path, "samples_a_base", base=BASE)
    likely = round(-math.log(26), 3)
    assert [len(one) for one in told["tokens"]] == told["logprobs"] == [4, 4]
    assert told["again"] == told["tokens"], "a seed gives the same sample again"
    assert told["reasons"] == ["length", "length"]
    assert told["ids"] == 2
    assert told["prompt"] == [None, likely, likely]
    assert told["topk"] == [0, 2, 2]
    assert told["drawn"] == [[3] * 4] * 2
    assert [told["scored"][0], len(told["scored"])] == [None, 3]
    assert told["base"] == BASE


async def test_a_model_is_made_of_a_base_in_the_callers_namespace(
    stage: Stage, key: str, tmp_path: Path
) -> None:
    told = await drive(stage.url, key, tmp_path, "makes_a_model", base=BASE)
    session, _, number = told["model"].partition(":train:")
    name = f"tk-{session.removeprefix('default.')}-{number}"
    made = stage.body("TrainableModel", name)
    assert made["spec"]["adapter"] == {"type": "LoRA", "rank": 4, "seed": 7}
    annotations = made["metadata"]["annotations"]
    assert annotations["espalier.dev/requested-by"] == "system:serviceaccount:default:ann"
    assert stage.body("TrainingRun", name)["spec"]["driver"] == "Client"
    for kind in ("TrainingRun", "CheckpointHead"):
        (owner,) = stage.body(kind, name)["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("TrainableModel", made["metadata"]["uid"])
    assert told["runs"] == [[told["model"], BASE, 4, {"purpose": "test"}]]
    assert (told["rank"], told["name"], told["capabilities"]) == (4, BASE, [BASE])


# The class of the SDK's error, and a part of what it says.
REFUSED = {
    "unknown base": ("NotFoundError", f"has no base 'Qwen/none'. Bases: {BASE}"),
    "rank": ("RequestFailedError", "lora_config.rank is 512: take one of 1 to 256"),
    "only the head": ("RequestFailedError", "Set train_attn or train_mlp"),
    "seed": ("RequestFailedError", "seed is -1"),
    "optimizer": ("RequestFailedError", "optimizer_config.type is dimuon"),
    "no project": ("NotFoundError", "'none' is no namespace that is served"),
    "another's project": ("PermissionDeniedError", "may not create models in namespace other"),
    "no path": ("NotFoundError", "names nothing here"),
    "another's path": ("PermissionDeniedError", "may not get trainablemodels other/arith"),
    "image": ("UnprocessableEntityError", "prompt.chunks[0] is of type image"),
    "targets": ("UnprocessableEntityError", "target_prompt_logprobs would have no effect here"),
    "stability": ("UnprocessableEntityError", "record_stability_info would have no effect here"),
    "no run": ("NotFoundError", "training_run_id 'default.none' names nothing here"),
    "billing": ("NotFoundError", "session_id 'gone' names nothing here"),
}


async def test_what_cannot_be_had_is_refused_at_once_by_name(
    stage: Stage, key: str, tmp_path: Path
) -> None:
    told = await drive(stage.url, key, tmp_path, "makes_mistakes", base=BASE)
    for name, (kind, says) in REFUSED.items():
        assert told[name]["kind"] == kind, (name, told[name])
        assert says in told[name]["says"], (name, told[name])
        assert told[name].get("category", "user") == "user"
    assert not [key for key in stage.cluster.objects if key.kind == "TrainingRun"]
