"""Death at an effect on the volume, under every disk that a power loss may leave.

``make test`` tries a stratified part of the points. ``python -m tests.trainer.faults`` tries all of
them as well, and prints a table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.trainer import faults, test_queue_crash, tinker
from tests.trainer.faults import DISKS, Disk
from tests.trainer.tiny import Volume

from espalier.trainer.engine.engine import Engine
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


def sends_to_the_inbox(engine: Engine, done: int) -> Iterator[None]:
    """The commands of test_queue_crash: each is acknowledged once it waits, and applied later."""
    tinker.work(engine)
    for sent in test_queue_crash.SCRIPT[done:]:
        tinker.accept(engine, *sent)
        yield
        tinker.work(engine)


@pytest.mark.parametrize("stride", [149, EVERY_POINT])
@pytest.mark.parametrize("disk", DISKS)
def test_what_waits_in_the_inbox_survives_too_with_every_result(
    tiny_base: Volume, shared_policy: Policy, disk: Disk, stride: int
) -> None:
    with tempfile.TemporaryDirectory(dir=faults.MEMORY) as name:
        root = Path(name)
        straight = faults.new_volume(tiny_base, root)
        points = faults.live(straight, shared_policy, client=sends_to_the_inbox)
        assert points is not None
        expected = test_queue_crash.outcome(straight, shared_policy)
        assert [status for status, _, _ in expected[2]] == [200] * 6 + [409, 409, 200, 200]
        first = DISKS.index(disk) * 37 % stride
        for at in range(first, len(points), stride):
            volume = faults.new_volume(tiny_base, root)
            assert faults.live(volume, shared_policy, at, disk, sends_to_the_inbox) is None
            assert faults.live(volume, shared_policy, client=sends_to_the_inbox) is not None
            found = test_queue_crash.outcome(volume, shared_policy)
            test_queue_crash.assert_same(found, expected)
