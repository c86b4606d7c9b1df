"""A volume that is really full or really read-only: a tmpfs in a mount namespace of its own."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.trainer import tiny
from tests.trainer.forking import in_a_fork
from tests.trainer.tiny import Volume

from espalier.trainer.engine.engine import Engine
from espalier.trainer.policy.policy import Policy
from espalier.trainer.problems import CommandError

MAY_MOUNT = subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0
CLONE_NEWNS = 0x00020000


def in_namespace(body: Callable[[], None]) -> None:
    """Runs ``body`` in a forked child whose mounts nobody else sees."""

    def work() -> None:
        library = ctypes.CDLL(None, use_errno=True)
        assert library.unshare(CLONE_NEWNS) == 0
        mount("--make-rprivate", "/")
        body()

    assert in_a_fork(work) == 0


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def refused(engine: Engine, seq: int) -> str:
    try:
        tiny.send(engine, "optim-step", tiny.optim_step(), ("s", seq))
    except CommandError as error:
        assert error.status == 507
        assert error.problem.remedy
        return error.problem.reason
    return "applied"


def digests_without_fault(volume: Volume, policy: Policy) -> list[str]:
    engine = tiny.engine(volume.path, volume.base, policy)
    engine.assign(tiny.assignment())
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 0))
    tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 1))
    engine.state.log.close()
    return [commit.digest for commit in engine.state.commits]


@pytest.mark.skipif(not MAY_MOUNT, reason="needs CAP_SYS_ADMIN for a mount namespace")
@pytest.mark.parametrize("fault", ["VolumeFull", "VolumeReadOnly"])
def test_the_step_is_refused_the_gradients_stay_and_the_trainer_recovers_by_itself(
    volume: Volume, policy: Policy, tmp_path: Path, fault: str
) -> None:
    expected = digests_without_fault(volume, policy)
    policy.reset()
    disk = tmp_path / "disk"
    disk.mkdir()

    def body() -> None:
        mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk))
        (disk / "bases").symlink_to(volume.path / "bases")
        engine = tiny.engine(disk, volume.base, policy)
        engine.assign(tiny.assignment())
        tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 0))
        filler = disk / "filler"
        if fault == "VolumeFull":
            with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"0" * 4096)
        else:
            # Open files keep a mount from turning read-only, so a read-only view covers it.
            mount("--bind", str(disk), str(disk))
            mount("-o", "remount,bind,ro", str(disk))
        for _ in range(2):
            assert refused(engine, 1) == fault
            assert engine.state.problem is not None
            assert engine.state.problem.reason == fault
            assert engine.state.report().pending == 1
            assert engine.state.commits == []
        if fault == "VolumeFull":
            filler.unlink()
        else:
            subprocess.run(["umount", str(disk)], check=True)
        assert refused(engine, 1) == "applied"
        assert engine.state.problem is None
        assert [commit.digest for commit in engine.state.commits] == expected
        engine.state.log.close()

    in_namespace(body)
