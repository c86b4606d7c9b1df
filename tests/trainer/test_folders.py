"""Trainer and sampler with the mounts of their pods, as manifests say them: in a namespace."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.kube.children import BASE, SETTINGS, Body, model_of, pod_of
from tests.trainer import tiny
from tests.trainer.forking import in_a_fork
from tests.trainer.test_fork import train
from tests.trainer.test_real_volume import MAY_MOUNT, in_namespace, mount
from tests.trainer.tiny import Volume

from espalier.core.manifests.sampler import rollout_deployment
from espalier.core.manifests.trainer import trainer_statefulset
from espalier.core.names import adapter_name
from espalier.core.volume import (
    base_directory,
    canonical_json,
    checkpoints_of,
    digest_named,
    digest_of,
    directory_name,
)
from espalier.sampler.verified_files import StoreError
from espalier.sampler.verified_store import AdapterStore, verify_base
from espalier.trainer.engine.engine import Engine
from espalier.trainer.jobs import folders
from espalier.trainer.policy.policy import Policy
from espalier.trainer.problems import CommandError
from espalier.trainer.volume.checkpoint_store import CheckpointStore

needs_mounts = pytest.mark.skipif(not MAY_MOUNT, reason="needs CAP_SYS_ADMIN for a mount namespace")


def trainer(base: str, *others: str) -> Body:
    return trainer_statefulset(model_of(), SETTINGS, base=base, replicas=1, others=others)


def sampler(base: str, *others: str) -> Body:
    return rollout_deployment(model_of(), SETTINGS, base=base, others=others)


def make_folders(volume: Path, workload: Body | None = None) -> int:
    """What the pod's init container does, by default of a trainer that needs no base."""
    told = {"ESPALIER_MODEL": tiny.MODEL, "ESPALIER_WRITES": "true"}
    if workload is not None:
        (container,) = pod_of(workload)["initContainers"]
        told = {entry["name"]: entry["value"] for entry in container["env"]}
    return folders.main({**told, "ESPALIER_VOLUME": str(volume)})


def mounted(workload: Body, claim: Path, place: Path) -> None:
    """Mounts what the workload's container sees of a claim, as a kubelet does."""
    (container,) = pod_of(workload)["containers"]
    for entry in container["volumeMounts"]:
        if entry["name"] == "weights":
            target = place / entry["mountPath"].removeprefix("/weights/")
            target.mkdir(parents=True, exist_ok=True)
            mount("--bind", str(claim / entry["subPath"]), str(target))
            if entry.get("readOnly"):
                mount("-o", "remount,bind,ro", str(target))


def in_pod(workload: Body, claim: Path, place: Path, body: Callable[[], None]) -> None:
    def work() -> None:
        mounted(workload, claim, place)
        body()

    in_namespace(work)


def trained(volume: Volume, policy: Policy, model: str, steps: int = 1) -> Engine:
    """A model's trainer that has taken steps and ended."""
    policy.reset()
    engine = tiny.engine(volume.path, volume.base, policy, model=model)
    engine.assign(tiny.assignment())
    train(engine, range(steps))
    engine.state.log.close()
    policy.reset()
    return engine


def left_by_a_version_before(folder: Path) -> Path:
    """Puts a model's one checkpoint where those of all models lay."""
    (stored,) = folder.iterdir()
    flat = folder.parent / stored.name
    stored.rename(flat)
    folder.rmdir()
    return flat


@needs_mounts
def test_training_goes_on_from_what_a_version_before_has_written_beside_the_folders(
    volume: Volume, policy: Policy, tmp_path: Path
) -> None:
    trained(volume, policy, tiny.MODEL)
    own = checkpoints_of(volume.path, tiny.MODEL)
    first = left_by_a_version_before(own)
    pod = trainer(volume.base)
    assert make_folders(volume.path, pod) == 0

    def body() -> None:
        again = tiny.engine(place, volume.base, policy)
        again.assign(tiny.assignment())
        assert again.state.position.digest.replace(":", "-") == first.name
        train(again, range(1, 2))
        assert [commit.step for commit in again.state.commits] == [1, 2]
        again.state.log.close()

    place = tmp_path / "weights"
    in_pod(pod, volume.path, place, body)
    assert not first.exists()
    steps = {json.loads((p / "manifest.json").read_text())["step"] for p in own.iterdir()}
    assert steps == {1, 2}


@needs_mounts
@pytest.mark.parametrize("before", [False, True], ids=["now", "by a version before"])
def test_a_fork_starts_from_its_parents_checkpoint_and_sees_no_third_models(
    volume: Volume, policy: Policy, tmp_path: Path, *, before: bool
) -> None:
    """``arith`` is the fork here: the mounts are its own."""
    commit = trained(volume, policy, "parent").state.commits[0]
    trained(volume, policy, "secret")
    folder = checkpoints_of(volume.path, "parent")
    if before:
        left_by_a_version_before(folder)
        left_by_a_version_before(checkpoints_of(volume.path, "secret"))
    (volume.path / "bases" / ("sha256-" + "c" * 64)).mkdir()
    pod = trainer(volume.base, "parent")
    assert make_folders(volume.path, pod) == 0

    def body() -> None:
        fork = tiny.engine(place, volume.base, policy)
        start = {"base": commit.digest, "base_name": commit.name, "base_step": commit.step}
        fork.assign(tiny.assignment(**start))
        train(fork, range(1, 2))
        assert fork.state.commits[0].parent == commit.digest
        for target in (folder, base_directory(volume.path, volume.base)):
            seen = place / target.relative_to(volume.path)
            with pytest.raises(OSError):
                (seen / "probe").write_text("")
        assert seen_of(place) == {
            "bases": {volume.base.replace(":", "-")},
            "checkpoints": {tiny.MODEL, "parent"},
            "models": {tiny.MODEL},
        }
        fork.state.log.close()

    place = tmp_path / "weights"
    in_pod(pod, volume.path, place, body)


def seen_of(place: Path) -> dict[str, set[str]]:
    return {part.name: {path.name for path in part.iterdir()} for part in place.iterdir()}


@needs_mounts
def test_a_trainer_is_held_near_another_models_checkpoint_only_where_its_run_names_it(
    volume: Volume, policy: Policy, tmp_path: Path
) -> None:
    commit = trained(volume, policy, "teacher").state.commits[0]

    def found() -> None:
        engine = tiny.engine(place, volume.base, policy)
        assert engine.state.references.find(commit.name).is_dir()
        engine.state.log.close()

    def refused() -> None:
        engine = tiny.engine(place, volume.base, policy)
        with pytest.raises(CommandError, match=commit.name) as error:
            engine.state.references.find(commit.name)
        assert "kl.reference.checkpointRef" in error.value.problem.remedy
        engine.state.log.close()

    place = tmp_path / "weights"
    for pod, body in ((trainer(volume.base), refused), (trainer(volume.base, "teacher"), found)):
        assert make_folders(volume.path, pod) == 0
        in_pod(pod, volume.path, place, body)


@needs_mounts
@pytest.mark.parametrize("before", [False, True], ids=["now", "by a version before"])
def test_a_sampler_finds_its_own_and_its_parents_checkpoints_and_no_third_models(
    volume: Volume, policy: Policy, tmp_path: Path, *, before: bool
) -> None:
    commits = {m: trained(volume, policy, m).state.commits[0] for m in (tiny.MODEL, "parent", "x")}
    if before:
        for model in commits:
            left_by_a_version_before(checkpoints_of(volume.path, model))
    pod = sampler(volume.base, "parent")
    assert make_folders(volume.path, pod) == 0

    def body() -> None:
        verify_base(base_directory(place, volume.base))
        store = AdapterStore(place, volume.base, max_rank=64)
        names = {model: adapter_name(tiny.MODEL, made.digest) for model, made in commits.items()}
        for model in (tiny.MODEL, "parent"):
            found = store.resolve(names[model])
            assert found.digest == commits[model].digest
            with pytest.raises(OSError):
                (found.directory.parent / "probe").write_text("")
        with pytest.raises(StoreError) as refused:
            store.resolve(names["x"])
        assert refused.value.problem.reason == "AdapterNotFound"
        assert seen_of(place).keys() == {"bases", "checkpoints"}

    place = tmp_path / "weights"
    in_pod(pod, volume.path, place, body)


def test_what_does_not_say_by_its_digest_whose_it_is_stays_beside_the_folders(
    volume: Volume, policy: Policy, tmp_path: Path
) -> None:
    trained(volume, policy, tiny.MODEL)
    flat = left_by_a_version_before(checkpoints_of(volume.path, tiny.MODEL))
    manifest = json.loads((flat / "manifest.json").read_text())
    (flat / "manifest.json").write_text(json.dumps({**manifest, "model": "another"}))
    # One that hashes to its name, and would lead elsewhere.
    text = canonical_json({**manifest, "model": "../models/another"})
    astray = flat.parent / directory_name(digest_of(text))
    astray.mkdir()
    (astray / "manifest.json").write_text(text)
    assert make_folders(volume.path) == 0
    assert {path.name for path in flat.parent.iterdir()} == {flat.name, astray.name, tiny.MODEL}
    assert {path.name for path in (volume.path / "models").iterdir()} == {tiny.MODEL}


def test_one_that_lies_in_both_places_stays_and_is_found_at_home(
    volume: Volume, policy: Policy
) -> None:
    trained(volume, policy, tiny.MODEL)
    (home,) = checkpoints_of(volume.path, tiny.MODEL).iterdir()
    shutil.copytree(home, home.parent.parent / home.name)
    assert make_folders(volume.path) == 0
    store = CheckpointStore(volume.path, tiny.MODEL)
    assert store.verify("checkpoint", digest_named(home.name)).path == home


def test_a_base_that_is_missing_is_named_and_no_folder_takes_its_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    claim = tmp_path / "claim"
    assert make_folders(claim, sampler(BASE)) == 64
    problem = json.loads(capfd.readouterr().out)
    assert problem["reason"] == "BaseNotFound"
    assert not base_directory(claim, BASE).exists()


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
@pytest.mark.parametrize("before", [False, True], ids=["first start", "later start"])
def test_a_volume_that_cannot_be_written_is_named_and_tried_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], *, before: bool
) -> None:
    """As where its disk has failed, and the kernel has mounted it read-only."""
    claim = tmp_path / "claim"
    claim.mkdir()
    if before:
        assert make_folders(claim) == 0
    ends_on_a_read_only_volume(claim, None, 1)
    problem = json.loads(capfd.readouterr().out)
    assert problem["reason"] == "VolumeReadOnly"
    assert problem["remedy"]


@needs_mounts
def test_a_sampler_starts_again_on_a_volume_that_can_only_be_read(
    volume: Volume, policy: Policy
) -> None:
    trained(volume, policy, tiny.MODEL)
    ends_on_a_read_only_volume(volume.path, sampler(volume.base), 0)


def ends_on_a_read_only_volume(claim: Path, workload: Body | None, code: int) -> None:
    """Runs the init container there."""

    def work() -> None:
        mount("--bind", str(claim), str(claim))
        mount("-o", "remount,bind,ro", str(claim))
        assert make_folders(claim, workload) == code

    in_namespace(work)
