"""The volume is restored from an earlier copy: Checkpoints are newer than the bytes."""

from __future__ import annotations

from pathlib import Path

from tests.recovery.site import MODEL, Site, ask


async def test_the_run_goes_on_from_what_is_left_once_its_owner_says_so(
    site: Site, tmp_path: Path
) -> None:
    backup = site.volume_copy(tmp_path / "copy")
    await site.train(2)
    await site.serves("arith-000005")
    await site.restore_volume(backup)
    # Nobody goes on by himself, neither from the old bytes nor under the old names.
    message = await site.says("TrainingRun", MODEL, "VolumeBehind")
    assert "arith-000005" in message
    assert "The newest that it has is arith-000003" in message
    await site.says("CheckpointHead", MODEL, "AdapterNotFound")
    site.show("TrainingRun")
    ask(site, "restored-on-monday")
    await site.says("Checkpoint", "arith-000004", "BytesMissing")
    assert site.condition("Checkpoint", "arith-000005")["status"] == "False"
    await site.reach(
        lambda: (
            "The newest that is Ready is arith-000003"
            in site.condition("CheckpointHead", MODEL)["message"]
        ),
        "the head names what is left",
    )
    assert "nothing is served in its place" in site.condition("CheckpointHead", MODEL)["message"]
    site.show("Checkpoint")
    site.show("CheckpointHead")
    assert site.stage.steps(MODEL) == 3
    await site.pin("arith-000003", "Branch")
    site.say('$ kubectl patch ckhead arith --type=merge -p \'{"spec": {"mode": "Pin", …}}\'')
    await site.serves("arith-000003")
    assert await site.train(2) == ["arith-b2-000004", "arith-b2-000005"]
    assert [site.optimizer_steps(f"arith-b2-00000{n}") for n in (4, 5)] == [4, 5]
    assert site.spec("arith-b2-000004")["parentRef"]["name"] == "arith-000003"
    site.show("CheckpointHead")
