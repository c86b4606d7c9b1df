"""The volume: content-addressed, complete or absent; bases, settings and the log's lock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.trainer import tiny
from tests.trainer.importing import import_directory
from tests.trainer.tiny import Volume

from espalier.api.model.adapter import Adapter
from espalier.trainer.jobs import importer, place
from espalier.trainer.policy.lora import Lora
from espalier.trainer.policy.policy import Policy, load_policy
from espalier.trainer.problems import CommandError, UserMistakeError
from espalier.trainer.settings import read_settings
from espalier.trainer.volume.checkpoint_store import CheckpointStore, DigestError
from espalier.trainer.volume.command_log import CommandLog, Key
from espalier.trainer.volume.lock import LogBusyError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Files that look like a model."""
    path = tmp_path / "source"
    (path / "nested").mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "nested" / "tokenizer.json").write_text("{}")
    (path / "model.gguf").write_bytes(b"other weights")
    (path / ".hidden.json").write_text("{}")
    return path


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "weights", "arith")


def test_an_imported_base_is_named_by_its_content(store: CheckpointStore, source: Path) -> None:
    first = import_directory(store, source)
    assert set(first.manifest["files"]) == {
        "config.json", "model.safetensors", "nested/tokenizer.json",
    }  # fmt: skip
    assert first.path.name == first.digest.replace(":", "-")
    assert import_directory(store, source) == first
    (source / "model.safetensors").write_bytes(b"Weights")
    assert import_directory(store, source).digest != first.digest
    verified = store.verify("base", first.digest)
    assert (verified.path, verified.manifest) == (first.path, first.manifest)


@pytest.mark.parametrize(
    ("damage", "detail"),
    [
        (lambda path: path.joinpath("model.safetensors").write_bytes(b"WEIGHTS"), "corrupt"),
        (lambda path: path.joinpath("model.safetensors").write_bytes(b"w"), "truncated"),
        (lambda path: path.joinpath("config.json").unlink(), "missing"),
        (lambda path: path.joinpath("manifest.json").write_text("{}"), "does not match"),
        (lambda path: path.joinpath("manifest.json").unlink(), "not on the volume"),
        (lambda path: path.joinpath("nested", "new.jinja").write_text("x"), "does not list"),
    ],
)
def test_damage_is_noticed(
    store: CheckpointStore, source: Path, damage: object, detail: str
) -> None:
    stored = import_directory(store, source)
    damage(stored.path)  # type: ignore[operator]
    with pytest.raises(DigestError, match=detail):
        store.verify("base", stored.digest)


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", None), ("model.safetensors", None), ("config.json", "not json")],
)
def test_a_directory_without_a_model_is_refused(
    store: CheckpointStore, source: Path, name: str, content: str | None
) -> None:
    if content is None:
        (source / name).unlink()
    else:
        (source / name).write_text(content)
    with pytest.raises(UserMistakeError) as caught:
        import_directory(store, source)
    assert caught.value.problem.reason == "BaseUnreadable"


def test_the_importer_leaves_its_result_or_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = tmp_path / "termination-log"
    message.touch()
    monkeypatch.setenv("ESPALIER_TERMINATION_LOG", str(message))
    monkeypatch.setenv("ESPALIER_VOLUME", str(tmp_path / "weights"))
    tiny.write_model(tmp_path / "model")
    order = ["--directory", str(tmp_path / "model")]
    assert importer.main(order) == 0
    assert message.read_text() == ""
    assert place.main(order) == 0
    result = json.loads(message.read_text())
    assert set(result) == {"uri", "revision", "digest", "contextTokens", "chatTemplate"}
    assert result["uri"].endswith(result["digest"].replace(":", "-"))
    assert importer.main(["--directory", str(tmp_path / "nowhere")]) == 64
    assert json.loads(message.read_text())["reason"] == "BaseUnreadable"


def test_a_full_disk_leaves_nothing_behind(
    store: CheckpointStore, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", no_space)
    with pytest.raises(CommandError) as caught:
        import_directory(store, source)
    assert caught.value.problem.reason == "VolumeFull"
    assert list((tmp_path / "weights" / "bases").iterdir()) == []


def test_a_sweep_removes_only_what_its_owner_left(store: CheckpointStore, tmp_path: Path) -> None:
    folder = tmp_path / "weights" / "checkpoints"
    for name in (".tmp-ab.arith", ".tmp-ab.arith-2", ".tmp-ab.other", "sha256-ab"):
        (folder / name).mkdir(parents=True)
    store.sweep()
    assert {path.name for path in folder.iterdir()} == {
        ".tmp-ab.arith-2", ".tmp-ab.other", "sha256-ab",
    }  # fmt: skip


def test_a_log_has_one_writer(tmp_path: Path) -> None:
    first = CommandLog(tmp_path)
    with pytest.raises(LogBusyError):
        CommandLog(tmp_path, lock_seconds=0)
    first.close()
    CommandLog(tmp_path, lock_seconds=0).close()


def test_a_body_is_kept_only_while_it_is_needed(tmp_path: Path) -> None:
    log = CommandLog(tmp_path)
    pending = log.begin(Key("s", 0), "forward-backward", b"gradients")
    log.accumulate(pending, "{}", "")
    abandoned = log.begin(Key("s", 1), "forward", b"failed")
    log.abandon(abandoned)
    assert log.body(pending) == b"gradients"
    assert len(list((tmp_path / "bodies").iterdir())) == 1
    log.settle(log.begin(Key("s", 2), "zero-grad", b"{}"), 200, "{}")
    assert list((tmp_path / "bodies").iterdir()) == []
    log.close()


# --- settings and models ----------------------------------------------------------------------

ENVIRONMENT = {
    "ESPALIER_MODEL": "arith",
    "ESPALIER_NAMESPACE": "default",
    "ESPALIER_POD_UID": "uid-1",
    "ESPALIER_VOLUME": "/weights",
    "ESPALIER_BASE": "sha256:" + "0" * 64,
    "ESPALIER_PUBLIC_KEYS": '{"operator": "PEM", "gateway": "PEM"}',
    "ESPALIER_ADAPTER": '{"rank": 8, "targetModules": ["q_proj"]}',
}


def test_settings_are_read_from_the_environment() -> None:
    settings = read_settings(ENVIRONMENT)
    assert (settings.audience, settings.dtype) == ("default/arith/trainer/uid-1", "float32")
    assert (settings.adapter.rank, settings.adapter.target_modules) == (8, ["q_proj"])


@pytest.mark.parametrize(
    "changes",
    [
        {"ESPALIER_DTYPE": "float8"},
        {"ESPALIER_ADAPTER": '{"rank": 0}'},
        {"ESPALIER_PUBLIC_KEYS": "PEM"},
        {"ESPALIER_PUBLIC_KEYS": '{"operator": "PEM"}'},
        *[{name: ""} for name in ENVIRONMENT if name != "ESPALIER_ADAPTER"],
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_wrong_variable_is_named(changes: dict[str, str]) -> None:
    with pytest.raises(UserMistakeError) as caught:
        read_settings(ENVIRONMENT | changes)
    assert next(iter(changes)) in caught.value.problem.detail


@pytest.mark.parametrize(
    ("modules", "reason"),
    [(["nothing"], "UnknownTargetModules"), (["lm_head"], "UnsupportedTargetModules")],
)
def test_target_modules_that_cannot_be_trained_are_refused(modules: list[str], reason: str) -> None:
    with pytest.raises(UserMistakeError) as caught:
        Policy(tiny.causal_lm(), Adapter(target_modules=modules), torch.device("cpu"))
    assert caught.value.problem.reason == reason


def test_some_target_modules_are_trained_and_no_others(tiny_base: Volume) -> None:
    base = CheckpointStore(tiny_base.path, "arith").open("base", tiny_base.base)
    made = load_policy(base.path, Adapter(rank=2, target_modules=["v_proj", "q_proj"]), "float32")
    assert len(made.parameters) == 2 * 2 * 2
    assert isinstance(made.trained, Lora)
    assert made.trained.configuration()["target_modules"] == ["q_proj", "v_proj"]


def test_the_seed_makes_the_adapter(tiny_base: Volume) -> None:
    base = CheckpointStore(tiny_base.path, "arith").open("base", tiny_base.base)
    made = [load_policy(base.path, Adapter(rank=2, seed=seed), "float32") for seed in (1, 1, 2)]
    first, again, other = ([p.detach() for p in m.parameters.values()] for m in made)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_bfloat16_base_trains_float32_adapters(tiny_base: Volume) -> None:
    base = CheckpointStore(tiny_base.path, "arith").open("base", tiny_base.base)
    made = load_policy(base.path, tiny.ADAPTER, "bfloat16")
    assert {p.dtype for p in made.parameters.values()} == {torch.float32}
    assert made._head.weight.dtype == torch.bfloat16


def test_a_directory_that_transformers_cannot_load_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(UserMistakeError) as caught:
        load_policy(tmp_path, tiny.ADAPTER, "float32")
    assert caught.value.problem.reason == "UnsupportedBase"
