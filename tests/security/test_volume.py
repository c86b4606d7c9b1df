"""Who can write the volume cannot have other bytes trained, served or believed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.kube.children import BASE, SETTINGS, model_of
from tests.sampler.tiny import commit
from tests.trainer import tiny
from tests.trainer.test_ranks import environment

from espalier.cli.head_manifest import HeadManifestError, documents_of
from espalier.core.manifests.installation import KEYS_FILE, ChildSettings
from espalier.core.manifests.sampler import rollout_deployment
from espalier.core.manifests.scrubber import scrubber_job
from espalier.core.manifests.trainer import trainer_statefulset
from espalier.core.volume import checkpoints_of, digest_of
from espalier.local.manifests import ManifestError, read
from espalier.sampler.verified_files import StoreError
from espalier.sampler.verified_store import verify_base
from espalier.trainer.__main__ import make_engine
from espalier.trainer.problems import UserMistakeError
from espalier.trainer.ranks.this_rank import read_world
from espalier.trainer.settings import read_settings
from espalier.trainer.volume.checkpoint_store import CheckpointStore, DigestError

Change = Callable[[Path], object]


def flip(path: Path) -> None:
    """Another byte in the middle, at the same length."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


# Each of them is read by vLLM or transformers.
CHANGES: dict[str, tuple[Change, str]] = {
    "weights": (lambda path: flip(path / "model.safetensors"), "FileAltered"),
    "configuration": (lambda path: flip(path / "config.json"), "FileAltered"),
    "a file more": (
        lambda path: (path / "chat_template.jinja").write_text("{{ messages }}"),
        "FileNotListed",
    ),
    "a link more": (
        lambda path: (path / "tokenizer.json").symlink_to("/etc/passwd"),
        "FileNotListed",
    ),
    "a file less": (lambda path: (path / "config.json").unlink(), "BaseIncomplete"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_sampler_does_not_start_on_a_base_that_was_changed_at_equal_size(
    tmp_path: Path, name: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "llama"}')
    (source / "model.safetensors").write_bytes(b"weights" * 100)
    digest = commit(tmp_path / "weights" / "bases", source, "base")
    directory = tmp_path / "weights" / "bases" / digest.replace(":", "-")
    verify_base(directory)
    change, reason = CHANGES[name]
    change(directory)
    with pytest.raises(StoreError) as refused:
        verify_base(directory)
    assert refused.value.problem.reason == reason


def test_a_trainer_does_not_start_on_a_base_that_was_changed_at_equal_size(
    tmp_path: Path,
) -> None:
    (tmp_path / "source").mkdir()
    base = tiny.write_base(tmp_path / "weights", tmp_path / "source")
    volume = tiny.Volume(tmp_path / "weights", base)
    flip(volume.path / "bases" / volume.base.replace(":", "-") / "model.safetensors")
    settings = read_settings(environment(volume))
    with pytest.raises(UserMistakeError, match=r"model\.safetensors") as refused:
        make_engine(settings, read_world({}), lambda _: None)
    assert refused.value.problem.reason == "BaseUnreadable"


@pytest.mark.parametrize(
    "written",
    [
        "[1]",
        "null",
        "{}",
        '{"files": {}, "model": ["arith"], "base": "b", "step": 1}',
        '{"files": [], "model": "arith", "base": "b", "step": 1}',
        '{"files": {"a": 1}, "model": "arith", "base": "b", "step": 1}',
        '{"files": {"../a": {"size": 1, "sha256": ""}}, "model": "arith", "base": "b", "step": 1}',
        '{"files": {"/a": {"size": 1, "sha256": ""}}, "model": "arith", "base": "b", "step": 1}',
        "[" * 100_000,
        "\xff\xfe",
    ],
)
def test_a_manifest_that_hashes_to_its_name_and_is_none_of_ours_is_passed_over(
    tmp_path: Path, written: str
) -> None:
    store = CheckpointStore(tmp_path, "arith")
    directory = tmp_path / "checkpoints" / "arith" / digest_of(written).replace(":", "-")
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_bytes(written.encode("latin-1"))
    assert [*store.checkpoints()] == []
    with pytest.raises(DigestError):
        store.verify("checkpoint", digest_of(written))


def test_yaml_that_is_nested_without_end_is_refused_by_name(tmp_path: Path) -> None:
    deep = "[" * 5000 + "]" * 5000
    with pytest.raises(HeadManifestError, match="nested too deeply"):
        list(documents_of(deep))
    (tmp_path / "deep.yaml").write_text(deep)
    with pytest.raises(ManifestError, match=r"deep\.yaml is nested too deeply"):
        read(tmp_path, {})


def mounts(workload: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


@pytest.mark.parametrize("others", [(), ("parent",)])
def test_a_model_sees_its_own_part_of_the_volume_and_what_it_names_of_others(
    others: tuple[str, ...],
) -> None:
    settings = ChildSettings(SETTINGS.images, KEYS_FILE, SETTINGS.gateway_url)
    trainer = mounts(
        trainer_statefulset(model_of(), settings, base=BASE, replicas=1, others=others)
    )
    sampler = mounts(rollout_deployment(model_of(), settings, base=BASE, others=others))

    def parts(of: dict[str, dict[str, Any]]) -> dict[str, bool]:
        """Where the volume is seen, by path inside of it, and whether it may be written."""
        weights = [mount for mount in of.values() if mount["name"] == "weights"]
        assert all(m["mountPath"] == f"/weights/{m['subPath']}" for m in weights)
        return {mount["subPath"]: not mount.get("readOnly", False) for mount in weights}

    scrubber = mounts(scrubber_job(model_of(), [], BASE, settings))
    assert parts(scrubber) == {"bases": False, "checkpoints/arith": False}
    base = f"bases/{BASE.replace(':', '-')}"
    read = {base: False, **{f"checkpoints/{other}": False for other in others}}
    assert parts(sampler) == {**read, "checkpoints/arith": False}
    assert parts(trainer) == {**read, "checkpoints/arith": True, "models/arith": True}
    # A subPath would keep the keys of the pod's start.
    for found in (trainer, sampler):
        assert found["/etc/espalier/keys"] == {
            "name": "keys",
            "mountPath": "/etc/espalier/keys",
            "readOnly": True,
        }


@pytest.mark.parametrize("fork", [False, True])
def test_what_another_models_trainer_puts_under_this_ones_digests_is_not_trained_on(
    tmp_path: Path, *, fork: bool
) -> None:
    """Whoever writes the folder of model ``mallory`` chooses its names, and no bytes of arith."""
    volume = tmp_path / "weights"
    writer = CheckpointStore(volume, "arith")
    with writer.staging("checkpoint") as staged:
        (staged / "state.json").write_text("{}")
        metadata = {"model": "arith", "base": BASE, "step": 1}
        stored, _ = writer.commit("checkpoint", staged, metadata)
    own, digest = stored.path, stored.digest
    store = CheckpointStore(volume, "a-fork" if fork else "arith")
    planted = checkpoints_of(volume, "a-mallory") / own.name
    shutil.copytree(own, planted)
    flip(planted / "state.json")
    assert store.verify("checkpoint", digest).path == own
    assert [stored.path for stored in store.checkpoints()] == [own]
    shutil.rmtree(own)
    assert not store.has("checkpoint", digest)
    assert [*store.checkpoints()] == []
