"""Death at an effect on the volume, under every disk that a power loss may leave.

``make test`` tries a stratified part of the points. ``python -m tests.trainer.faults`` tries all of
them as well, and prints a table.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from tests.trainer import faults
from tests.trainer.faults import DISKS, Disk
from tests.trainer.tiny import Volume

from espalier.trainer.policy.policy import Policy

EVERY_POINT = pytest.param(1, marks=[pytest.mark.exhaustive, pytest.mark.timeout(1800)])


@pytest.mark.parametrize("stride", [29, EVERY_POINT])
@pytest.mark.parametrize("disk", DISKS)
def test_a_training_that_dies_once_ends_as_the_one_that_did_not(
    tiny_base: Volume, shared_policy: Policy, disk: Disk, stride: int
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
            for at in range(DISKS.index(disk) * 5 % stride, len(points), stride)
            if not faults.survives(tiny_base, shared_policy, root, at, disk, expected=expected)
        ]
    assert lost == []
