"""Death at an effect on the volume, under every disk that a power loss may leave.

A stratified part of ``python -m tests.trainer.faults``, which tries every point.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from tests.trainer import faults
from tests.trainer.faults import DISKS, Disk
from tests.trainer.tiny import Volume

from espalier.trainer.model import Policy

STRIDE = 29


@pytest.mark.parametrize("disk", DISKS)
def test_a_training_that_dies_once_ends_as_the_one_that_did_not(
    tiny_base: Volume, shared_policy: Policy, disk: Disk
) -> None:
    with tempfile.TemporaryDirectory(dir=faults.MEMORY) as name:
        root = Path(name)
        straight = faults.new_volume(tiny_base, root)
        points = faults.live(straight, shared_policy)
        assert points is not None
        expected = faults.outcome(straight, shared_policy)
        assert len(expected.digests) == 2
        # The harness sees the whole training, its last optimizer step included.
        computed = [kind for kind, _ in faults.SCRIPT if kind == "forward-backward"]
        assert points.count("before add_loss") == len(computed)
        assert points.count("before rename") > len(expected.digests)
        lost = [
            points[at]
            for at in range(DISKS.index(disk) * 5, len(points), STRIDE)
            if not faults.survives(tiny_base, shared_policy, root, at, disk, expected=expected)
        ]
    assert lost == []
