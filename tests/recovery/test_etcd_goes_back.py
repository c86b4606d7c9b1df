"""etcd is restored from an earlier snapshot: objects are older than the volume."""

from __future__ import annotations

from tests.compat.stage import NAMESPACE
from tests.recovery.site import MODEL, Site

from espalier.kube.objects import ObjectKey


async def test_forgotten_checkpoints_come_back_from_the_log_and_no_step_is_taken_twice(
    site: Site,
) -> None:
    backup = site.etcd_backup()
    taken = await site.train(3)
    await site.serves(taken[-1])
    before = site.digests()
    await site.restore_etcd(backup)
    await site.serves("arith-000006")
    assert site.digests() == before
    run = ObjectKey("TrainingRun", NAMESPACE, MODEL)
    await site.reach(
        lambda: site.stage.cluster.objects[run]["status"]["step"] == 6, "the run's status"
    )
    site.show("Checkpoint")
    site.show("CheckpointHead")
    assert await site.train(1) == ["arith-000007"]
    assert site.optimizer_steps("arith-000007") == 7


async def test_a_branch_of_the_lost_hour_is_found_and_gone_on_with(site: Site) -> None:
    backup = site.etcd_backup()
    await site.pin("arith-000001", "Branch")
    await site.serves("arith-000001")
    assert await site.train(2) == ["arith-b2-000002", "arith-b2-000003"]
    await site.restore_etcd(backup)
    # The head's spec of that hour tracks again: the newest of what training went on with.
    await site.serves("arith-b2-000003")
    assert await site.train(1) == ["arith-b2-000004"]
    assert site.optimizer_steps("arith-b2-000004") == 4


async def test_a_head_that_was_moved_in_the_lost_hour_stands_where_its_spec_says(
    site: Site,
) -> None:
    await site.pin("arith-000002", "Pause")
    await site.serves("arith-000002")
    backup = site.etcd_backup()
    await site.track()
    await site.serves("arith-000003")
    await site.train(1)
    await site.restore_etcd(backup)
    await site.serves("arith-000002")
    assert site.condition("CheckpointHead", MODEL)["reason"] == "Pinned"
    # A pin with Pause keeps the trainer away, which knows of the step: it tells once it is back.
    await site.track()
    await site.serves("arith-000004")
    assert await site.train(1) == ["arith-000005"]
    assert site.optimizer_steps("arith-000005") == 5
