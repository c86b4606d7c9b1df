"""Trainer and sampler with the mounts of their pods, as manifests say them: in a namespace."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.kube.children import BASE, HUB_BASE, SETTINGS, Body, container_of, model_of
from tests.trainer import tiny
from tests.trainer.forking import in_a_fork
from tests.trainer.in_pod import in_container, seen_of, told
from tests.trainer.test_fork import train
from tests.trainer.test_real_volume import MAY_MOUNT, in_namespace, mount
from tests.trainer.tiny import Volume

from espalier.core.manifests.importer import importer_job
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
    imports_of,
)
from espalier.sampler.verified_files import StoreError
from espalier.sampler.verified_store import AdapterStore, verify_base
from espalier.trainer.engine.engine import Engine
from espalier.trainer.jobs import folders
from espalier.trainer.jobs.import_order import Order
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
    if workload is not None:
        return folders.main(told(container_of(workload, "folders"), volume))
    given = {"ESPALIER_MODEL": tiny.MODEL, "ESPALIER_WRITES": "true"}
    return folders.main({**given, "ESPALIER_VOLUME": str(volume)})


def in_pod(workload: Body, claim: Path, place: Path, body: Callable[[], None]) -> None:
    in_container(container_of(workload), claim, place, body)


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


@needs_mounts
def test_a_trainer_is_held_near_another_models_checkpoint_only_where_its_run_names_it(
    volume: Volume, policy: Policy, tmp_path: Path
) -> None:
    commit = trained(volume, policy, "teacher").state.commits[0]

    def found() -> None:
        engine = tiny.engine(place, volume.base, policy)
        assert engine.state.references.find(commit.name).path.is_dir()
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


def importing() -> Body:
    return importer_job(model_of(source={"base": HUB_BASE}), SETTINGS)


def aged(folder: Path, days: float) -> Path:
    """A folder with a file in it, which nobody has touched for so long."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors.partial").write_bytes(b"half")
    then = time.time() - days * 24 * 3600
    os.utime(folder, (then, then))
    return folder


def test_an_importer_goes_on_with_what_a_version_before_has_downloaded(tmp_path: Path) -> None:
    args = container_of(importing(), "importer")["args"]
    name = hashlib.sha256(f"spec.source.base.huggingFace {args[1]}".encode()).hexdigest()[:16]
    aged(tmp_path / "downloads" / "arith" / name, days=3)
    assert make_folders(tmp_path, importing()) == 0
    order = Order.read(args, {"ESPALIER_VOLUME": str(tmp_path), "ESPALIER_MODEL": "arith"})
    assert order.base is not None
    partial = order.staging / order.base.staged / "model.safetensors.partial"
    assert partial.read_bytes() == b"half"
    assert not (tmp_path / "downloads").exists()


def test_what_an_import_left_is_swept_once_no_job_can_go_on_with_it(tmp_path: Path) -> None:
    bases = tmp_path / "bases"
    left = [
        aged(imports_of(tmp_path, "gone"), days=2),
        aged(tmp_path / "downloads" / "gone", days=2),
        aged(bases / ".tmp-ab.importer", days=2),
    ]
    kept = [
        aged(imports_of(tmp_path, "busy"), days=0.2),
        aged(tmp_path / "downloads" / "busy", days=0.2),
        aged(bases / ".tmp-cd.importer", days=0.2),
        aged(bases / BASE.replace(":", "-"), days=900),
        # One's own, also after a long time in a queue.
        aged(imports_of(tmp_path, "arith"), days=30),
    ]
    assert make_folders(tmp_path, importing()) == 0
    assert [path for path in left if path.exists()] == []
    assert [path for path in kept if not [*path.iterdir()]] == []
    found = {path.name for path in (*bases.iterdir(), *imports_of(tmp_path, "x").parent.iterdir())}
    assert found == {".imports", "arith", "busy", ".tmp-cd.importer", BASE.replace(":", "-")}


def test_what_is_swept_is_not_what_a_link_leads_to(tmp_path: Path) -> None:
    base = aged(tmp_path / "bases" / BASE.replace(":", "-"), days=2)
    left = aged(imports_of(tmp_path, "gone"), days=2)
    (left / "inside").symlink_to(base)
    (left.parent / "itself").symlink_to(base)
    for path in (left, left.parent / "itself"):
        os.utime(path, (0, 0), follow_symlinks=False)
    assert make_folders(tmp_path, importing()) == 0
    assert [path.name for path in left.parent.iterdir()] == ["arith"]
    assert [path.name for path in base.iterdir()] == ["model.safetensors.partial"]


def ends_on_a_read_only_volume(claim: Path, workload: Body | None, code: int) -> None:
    """Runs the init container there."""

    def work() -> None:
        mount("--bind", str(claim), str(claim))
        mount("-o", "remount,bind,ro", str(claim))
        assert make_folders(claim, workload) == code

    in_namespace(work)
