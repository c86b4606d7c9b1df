"""The node with trainer and sampler dies: pods are replaced, and each step is taken once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.compat.stage import Fault, Stage
from tests.recovery.site import MODEL, Site, lose_pods

from espalier.trainer.volume.command_log import CommandLog, Key
from espalier.trainer.volume.lock import LogBusyError

# A trainer's process as far as the log goes: it takes the lock, answers a command, and lives on.
OLD = """
import pathlib, sys, time
from espalier.trainer.volume.command_log import CommandLog, Key
log = CommandLog(pathlib.Path(sys.argv[1]))
log.finish(log.begin(Key("s", 0), "forward", b"{}"), 200, "answered")
print("ready", flush=True)
time.sleep(600)
"""


async def lose_node(stage: Stage, _model: str) -> None:
    """The node controller's work: pods of a node that is gone are deleted, and made elsewhere."""
    async with stage.still:
        await lose_pods(stage)


@pytest.mark.parametrize("before", [True, False], ids=["under way", "taken and not answered"])
async def test_a_step_that_the_node_dies_in_is_taken_once(site: Site, before: bool) -> None:
    pods = site.pods()
    # Of the step's two commands the second is struck.
    site.stage.faults = [None, Fault("the node dies", lose_node, before=before)]
    assert await site.train(1) == ["arith-000004"]
    assert not site.stage.faults
    await site.serves("arith-000004")
    assert pods.isdisjoint(site.pods())
    assert await site.train(1) == ["arith-000005"]
    assert site.optimizer_steps("arith-000005") == 5
    assert site.stage.steps(MODEL) == 5
    site.show("Checkpoint")


def test_while_the_old_trainer_may_still_write_the_new_one_does_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as old:
        assert old.stdout is not None
        assert old.stdout.readline() == b"ready\n"
        with pytest.raises(LogBusyError):
            CommandLog(tmp_path, lock_seconds=0.2)
        old.kill()
    # The lock went with the process, without anybody to clear it, and what it answered stays.
    log = CommandLog(tmp_path, lock_seconds=5.0)
    found = log.find(Key("s", 0))
    assert found is not None
    assert (found.status, found.answer) == (200, "answered")
    log.close()
