"""A trainer with the mounts of its pod, as its manifest says them: real ones, in a namespace."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.kube.children import BASE, SETTINGS, model_of, pod_of
from tests.trainer import tiny
from tests.trainer.forking import in_a_fork
from tests.trainer.test_fork import train
from tests.trainer.test_real_volume import MAY_MOUNT, in_namespace, mount
from tests.trainer.tiny import Volume

from espalier.core.manifests.trainer import trainer_statefulset
from espalier.core.volume import checkpoints_of
from espalier.trainer.jobs import own_folders
from espalier.trainer.policy.policy import Policy

needs_mounts = pytest.mark.skipif(not MAY_MOUNT, reason="needs CAP_SYS_ADMIN for a mount namespace")


def make_folders(volume: Path, model: str = tiny.MODEL) -> int:
    """What the pod's init container does."""
    return own_folders.main({"ESPALIER_VOLUME": str(volume), "ESPALIER_MODEL": model})


def mounted(claim: Path, place: Path) -> None:
    """Mounts what the trainer's container sees of a claim, as a kubelet does."""
    spec = pod_of(trainer_statefulset(model_of(), SETTINGS, base=BASE, replicas=1))
    (container,) = spec["containers"]
    for entry in container["volumeMounts"]:
        if entry["name"] == "weights":
            target = place / entry["mountPath"].removeprefix("/weights/")
            target.mkdir(parents=True, exist_ok=True)
            mount("--bind", str(claim / entry["subPath"]), str(target))
            if entry.get("readOnly"):
                mount("-o", "remount,bind,ro", str(target))


def in_pod(claim: Path, place: Path, body: Callable[[], None]) -> None:
    def work() -> None:
        mounted(claim, place)
        body()

    in_namespace(work)


@needs_mounts
def test_training_goes_on_from_where_a_version_before_has_written_into_its_own_folder(
    volume: Volume, policy: Policy, tmp_path: Path
) -> None:
    engine = tiny.engine(volume.path, volume.base, policy)
    engine.assign(tiny.assignment())
    train(engine, range(1))
    engine.state.log.close()
    (first,) = checkpoints_of(volume.path, tiny.MODEL).iterdir()
    # Where all checkpoints lay.
    first.rename(volume.path / "checkpoints" / first.name)
    first.parent.rmdir()
    policy.reset()
    assert make_folders(volume.path) == 0

    def body() -> None:
        again = tiny.engine(place, volume.base, policy)
        again.assign(tiny.assignment())
        assert again.state.position.digest.replace(":", "-") == first.name
        train(again, range(1, 2))
        assert [commit.step for commit in again.state.commits] == [1, 2]
        again.state.log.close()

    place = tmp_path / "weights"
    in_pod(volume.path, place, body)
    (second,) = checkpoints_of(volume.path, tiny.MODEL).iterdir()
    assert json.loads((second / "manifest.json").read_text())["step"] == 2
    assert (volume.path / "checkpoints" / first.name).is_dir()


@needs_mounts
def test_a_fork_starts_from_its_parents_checkpoint_which_it_cannot_write(
    volume: Volume, policy: Policy, tmp_path: Path
) -> None:
    """``arith`` is the fork here: the mounts are its own."""
    folder = checkpoints_of(volume.path, "parent")
    engine = tiny.engine(volume.path, volume.base, policy, model="parent")
    engine.assign(tiny.assignment())
    train(engine, range(1))
    commit = engine.state.commits[0]
    engine.state.log.close()
    policy.reset()
    assert make_folders(volume.path) == 0

    def body() -> None:
        fork = tiny.engine(place, volume.base, policy)
        start = {"base": commit.digest, "base_name": commit.name, "base_step": commit.step}
        fork.assign(tiny.assignment(**start))
        train(fork, range(1, 2))
        assert fork.state.commits[0].parent == commit.digest
        for target in (folder, volume.path / "bases", volume.path / "models" / "parent"):
            seen = place / target.relative_to(volume.path)
            with pytest.raises(OSError):
                (seen / "probe").write_text("")
        assert [path.name for path in (place / "models").iterdir()] == [tiny.MODEL]
        fork.state.log.close()

    place = tmp_path / "weights"
    in_pod(volume.path, place, body)


def test_folders_of_another_user_are_named_with_the_remedy(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As on a volume without fsGroup whose root belongs to root."""

    def as_the_pods_user() -> None:
        os.setuid(65532)
        assert make_folders(tmp_path / "claim") == 64

    (tmp_path / "claim").mkdir(mode=0o755)
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    assert in_a_fork(as_the_pods_user) == 0
    problem = json.loads(capfd.readouterr().out)
    assert problem["reason"] == "VolumeNotWritable"
    assert "chown 65532" in problem["remedy"]


@needs_mounts
def test_a_volume_that_cannot_be_written_is_named_and_tried_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As where its disk has failed, and the kernel has mounted it read-only."""

    def read_only() -> None:
        mount("--bind", str(claim), str(claim))
        mount("-o", "remount,bind,ro", str(claim))
        assert make_folders(claim) == 1

    claim = tmp_path / "claim"
    claim.mkdir()
    in_namespace(read_only)
    problem = json.loads(capfd.readouterr().out)
    assert problem["reason"] == "VolumeReadOnly"
    assert problem["remedy"]
