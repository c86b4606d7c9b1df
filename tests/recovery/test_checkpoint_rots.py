"""A bit of a checkpoint flips on the disk: the scrub finds and names it, and nothing uses it."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import REGISTRY
from tests.compat.stage import NAMESPACE
from tests.recovery.site import MODEL, Site, ask
from tests.trainer.test_scrubber import flip

WEIGHTS = "adapter_model.safetensors"


async def test_a_scrub_names_the_rotten_checkpoint_and_takes_it_back_once_it_is_restored(
    site: Site, tmp_path: Path
) -> None:
    backup = site.volume_copy(tmp_path / "copy")
    rotten = site.directory("arith-000002")
    gauge = {"object_namespace": NAMESPACE}
    before = REGISTRY.get_sample_value("espalier_rotten_checkpoints", gauge) or 0
    flip(rotten / WEIGHTS)
    ask(site, "monday")
    message = await site.says("Checkpoint", "arith-000002", "BytesAltered")
    assert WEIGHTS in message
    assert "Restore its directory" in message
    message = await site.says("TrainableModel", MODEL, "CheckpointsRotten", "BytesIntact")
    assert "arith-000002" in message
    site.show("Checkpoint")
    site.say("$ kubectl get tmodel arith -o jsonpath=… BytesIntact")
    site.say(message)
    assert REGISTRY.get_sample_value("espalier_rotten_checkpoints", gauge) == before + 1
    events = {e["reason"] for e in site.stage.kubelet.bodies("Event")}
    assert {"BytesAltered", "CheckpointsRotten"} <= events
    # Who asks for it does not get it, and what was served stays served.
    await site.pin("arith-000002", "Continue")
    await site.says("CheckpointHead", MODEL, "FileAltered")
    site.show("CheckpointHead")
    head = site.stage.body("CheckpointHead", MODEL)["status"]
    assert head["current"]["name"] == "arith-000003"
    await site.track()
    copy = backup / "checkpoints" / MODEL / rotten.name / WEIGHTS
    (rotten / WEIGHTS).write_bytes(copy.read_bytes())
    ask(site, "tuesday")
    await site.says("TrainableModel", MODEL, "Scrubbed", "BytesIntact")
    await site.says("Checkpoint", "arith-000002", "Committed")
    assert REGISTRY.get_sample_value("espalier_rotten_checkpoints", gauge) == before
    await site.pin("arith-000002", "Continue")
    await site.serves("arith-000002")


async def test_a_trainer_whose_own_checkpoint_rotted_waits_and_trains_from_another(
    site: Site,
) -> None:
    flip(site.directory("arith-000003") / WEIGHTS)
    await site.restart_trainer()
    message = await site.says("TrainingRun", MODEL, "CheckpointUnreadable")
    assert "pin the head to another checkpoint" in message
    site.show("TrainingRun")
    await site.says("Checkpoint", "arith-000003", "CheckpointUnreadable")
    await site.pin("arith-000002", "Branch")
    await site.serves("arith-000002")
    assert await site.train(1) == ["arith-b2-000003"]
    assert site.optimizer_steps("arith-b2-000003") == 3
