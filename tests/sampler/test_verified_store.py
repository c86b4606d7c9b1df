"""What the store hands to vLLM, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tests.sampler.tiny import commit, commit_checkpoint

from espalier.sampler.verified_files import StoreError, copy_verified, read_manifest
from espalier.sampler.verified_store import AdapterStore, verify_base

BASE = "sha256:" + "b" * 64
OTHER_BASE = "sha256:" + "c" * 64


def source(directory: Path, **described: object) -> Path:
    directory.mkdir(parents=True)
    described = {"peft_type": "LORA", "r": 4} | described
    (directory / "adapter_config.json").write_text(json.dumps(described))
    (directory / "adapter_model.safetensors").write_bytes(b"weights")
    return directory


def name_of(digest: str) -> str:
    return f"arith@{digest[7:19]}"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def store(volume: Path) -> AdapterStore:
    return AdapterStore(volume, BASE, max_rank=8)


@pytest.fixture
def digest(volume: Path, tmp_path: Path) -> str:
    return commit_checkpoint(volume, source(tmp_path / "adapter"), BASE, rank=4)


def refusal(store: AdapterStore, name: str) -> str:
    with pytest.raises(StoreError) as caught:
        store.resolve(name)
    assert caught.value.problem.remedy
    return caught.value.problem.reason


def directory_of(volume: Path, digest: str, model: str = "arith") -> Path:
    return volume / "checkpoints" / model / digest.replace(":", "-")


def test_a_committed_adapter_resolves_to_its_directory(
    store: AdapterStore, volume: Path, digest: str
) -> None:
    adapter = store.resolve(name_of(digest))
    assert (adapter.digest, adapter.rank) == (digest, 4)
    assert adapter.directory == directory_of(volume, digest)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "base",
        "arith",
        "arith@",
        "arith@123",
        "arith@ABCDEF012345",
        "arith@0123456789abc",
        "../checkpoints/x@0123456789ab",
        "arith@../../../etc/",
        "arith@0123456789ab/../x",
        "ns/arith@0123456789ab",
        "arith@0123456789ab\n",
        "Arith@0123456789ab",
        "@0123456789ab",
    ],
)
def test_only_slug_and_twelve_hex_digits_is_a_name(store: AdapterStore, name: str) -> None:
    assert refusal(store, name) == "InvalidAdapterName"


def test_an_unknown_digest_is_not_found(store: AdapterStore, digest: str) -> None:
    assert refusal(store, "arith@000000000000") == "AdapterNotFound"


def test_a_volume_without_checkpoints_holds_no_adapter(store: AdapterStore) -> None:
    assert refusal(store, "arith@000000000000") == "AdapterNotFound"


def test_a_prefix_shared_by_two_checkpoints_is_refused(
    store: AdapterStore, volume: Path, digest: str
) -> None:
    twin = directory_of(volume, digest)
    (twin.parent / (twin.name[:19] + "0" * 52)).mkdir()
    assert refusal(store, name_of(digest)) == "AmbiguousAdapter"


@pytest.mark.parametrize("folder", ["", "parent"])
def test_a_fork_finds_its_parents_checkpoint_and_one_from_before_models_had_folders(
    store: AdapterStore, volume: Path, tmp_path: Path, folder: str
) -> None:
    files = source(tmp_path / "adapter")
    digest = commit_checkpoint(volume, files, BASE, rank=4, model="parent")
    place = volume / "checkpoints" / folder / digest.replace(":", "-")
    directory_of(volume, digest, "parent").rename(place)
    assert store.resolve(name_of(digest)).directory == place


def test_a_checkpoint_that_lies_where_all_did_and_in_its_models_folder_is_one(
    store: AdapterStore, volume: Path, tmp_path: Path
) -> None:
    """As after a step that a version before had written, and this one took again."""
    digest = commit_checkpoint(volume, source(tmp_path / "adapter"), BASE, rank=4, model="parent")
    place = directory_of(volume, digest, "parent")
    shutil.copytree(place, volume / "checkpoints" / place.name)
    assert store.resolve(name_of(digest)).digest == digest


def test_what_another_models_trainer_puts_under_this_ones_digests_is_not_looked_at(
    store: AdapterStore, volume: Path, digest: str
) -> None:
    """Whoever writes the folder of model ``mallory`` chooses its names, and no bytes of arith."""
    own = directory_of(volume, digest)
    planted = directory_of(volume, digest, "mallory")
    shutil.copytree(own, planted)
    (planted / "adapter_model.safetensors").write_bytes(b"mallory")
    (planted.parent / (own.name[:19] + "0" * 52)).mkdir()
    assert store.resolve(name_of(digest)).directory == own
    fork = name_of(digest).replace("arith", "fork")
    assert store.resolve(fork).directory == own
    shutil.rmtree(own)
    assert refusal(store, fork) == "AdapterNotFound"


def test_a_commit_in_progress_is_not_served(store: AdapterStore, volume: Path) -> None:
    (volume / "checkpoints" / "arith" / ("sha256-" + "a" * 64)).mkdir(parents=True)
    assert refusal(store, "arith@" + "a" * 12) == "NotCommitted"


def test_an_altered_manifest_is_refused(store: AdapterStore, volume: Path, digest: str) -> None:
    manifest = directory_of(volume, digest) / "manifest.json"
    manifest.write_text(manifest.read_text().replace(BASE, OTHER_BASE))
    assert refusal(store, name_of(digest)) == "DigestMismatch"


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_altered_file_is_refused(
    store: AdapterStore, volume: Path, digest: str, file: str
) -> None:
    altered = directory_of(volume, digest) / file
    altered.write_bytes(altered.read_bytes() + b" ")
    assert refusal(store, name_of(digest)) == "FileAltered"


def test_a_missing_file_is_refused(store: AdapterStore, volume: Path, digest: str) -> None:
    (directory_of(volume, digest) / "adapter_model.safetensors").unlink()
    assert refusal(store, name_of(digest)) == "Unreadable"


def test_an_adapter_of_another_base_is_refused(
    store: AdapterStore, volume: Path, tmp_path: Path
) -> None:
    digest = commit_checkpoint(volume, source(tmp_path / "other"), OTHER_BASE, rank=4)
    assert refusal(store, name_of(digest)) == "WrongBase"


@pytest.mark.parametrize(
    ("described", "reason"),
    [({"r": 16}, "RankTooHigh"), ({"peft_type": "IA3"}, "NotLoRA"), ({"r": None}, "NotLoRA")],
)
def test_an_adapter_that_the_server_has_no_slot_for_is_refused(
    store: AdapterStore, volume: Path, tmp_path: Path, described: dict[str, object], reason: str
) -> None:
    digest = commit_checkpoint(volume, source(tmp_path / "odd", **described), BASE, rank=4)
    assert refusal(store, name_of(digest)) == reason


def test_a_base_is_no_adapter(store: AdapterStore, volume: Path, tmp_path: Path) -> None:
    digest = commit(volume / "checkpoints" / "arith", source(tmp_path / "base"), "base", base=BASE)
    assert refusal(store, name_of(digest)) == "WrongKind"


def test_a_base_must_be_committed_and_complete(volume: Path, tmp_path: Path) -> None:
    digest = commit(volume / "bases", source(tmp_path / "base"), "base")
    directory = volume / "bases" / digest.replace(":", "-")
    verify_base(directory)
    (directory / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(StoreError, match="7 bytes"):
        verify_base(directory)
    with pytest.raises(StoreError, match="not on the volume"):
        verify_base(volume / "bases" / ("sha256-" + "0" * 64))


def test_a_copy_takes_no_more_memory_than_the_manifest_says(volume: Path, tmp_path: Path) -> None:
    digest = commit_checkpoint(volume, source(tmp_path / "source"), BASE, 4)
    (directory,) = volume.glob(f"checkpoints/**/{digest.replace(':', '-')}")
    file = directory / "adapter_model.safetensors"
    size = file.stat().st_size
    os.truncate(file, 64 << 20)
    manifest = read_manifest(directory, "checkpoint")
    with os.fdopen(os.memfd_create("copy"), "w+b") as copy:
        with pytest.raises(StoreError, match="does not match"):
            copy_verified(directory, file.name, manifest, copy)
        assert os.fstat(copy.fileno()).st_size <= size + 1
