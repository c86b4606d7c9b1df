"""Adapters from outside: taken over exactly, or refused with what to change; never unpickled."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.trainer import tiny
from tests.trainer.importing import import_adapter
from tests.trainer.tiny import ADAPTER, MODEL, Volume

from espalier.api.source import Resolved
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine.engine import Engine
from espalier.trainer.jobs import importer, place
from espalier.trainer.problems import CommandError, UserMistakeError
from espalier.trainer.volume.checkpoint_store import CheckpointStore, Stored

WEIGHTS = "adapter_model.safetensors"


def imported(volume: Volume, outside: Path) -> Stored:
    store = CheckpointStore(volume.path, MODEL, "importer")
    return import_adapter(store, outside, ADAPTER, model=MODEL, base=volume.base)


def imported_by_job(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Resolved:
    """What the Job's two containers, which are given the same, leave in the end."""
    assert importer.main(arguments) == 0
    assert capsys.readouterr().out == ""
    assert place.main(arguments) == 0
    return Resolved.model_validate_json(capsys.readouterr().out)


def stand_on(engine: Engine, stored: Stored) -> None:
    engine.assign(tiny.assignment(2, branch="b2", base=stored.digest, base_name="arith-000000"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_training_starts_from_an_adapter_from_outside(
    engine: Engine, volume: Volume, outside: Path, dtype: torch.dtype
) -> None:
    given = {name: value.to(dtype) for name, value in load_file(outside / WEIGHTS).items()}
    save_file(given, outside / WEIGHTS)
    stored = imported(volume, outside)
    stand_on(engine, stored)
    assert isinstance(engine.state.compute, LocalCompute)
    trained = engine.state.compute.policy.parameters
    assert {name: value.dtype for name, value in trained.items()} == dict.fromkeys(
        given, torch.float32
    )
    assert all(torch.equal(trained[name], value.float()) for name, value in given.items())
    assert tiny.moments(engine).steps == 0
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 0))
    tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 1))
    commit = engine.state.commits[0]
    assert (commit.step, commit.parent, commit.parent_name) == (1, stored.digest, "arith-000000")


def test_the_same_adapter_again_is_the_same_checkpoint(volume: Volume, outside: Path) -> None:
    assert imported(volume, outside).digest == imported(volume, outside).digest


def test_the_importer_takes_base_and_adapter_in_one_go(
    volume: Volume,
    outside: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = tmp_path / "model"
    base.mkdir()
    for path in CheckpointStore(volume.path, "importer").open("base", volume.base).path.iterdir():
        if path.name != "manifest.json":
            (base / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("ESPALIER_VOLUME", str(tmp_path / "fresh"))
    monkeypatch.setenv("ESPALIER_ADAPTER", ADAPTER.model_dump_json(by_alias=True))
    arguments = ["--directory", str(base), "--adapter", str(outside), "--model", MODEL]
    report = imported_by_job(arguments, capsys)
    assert report.digest == volume.base
    assert report.adapter is not None
    store = CheckpointStore(tmp_path / "fresh", "importer")
    stored = store.verify("checkpoint", report.adapter.digest)
    assert stored.size_bytes == report.adapter.size_bytes
    assert (stored.manifest["model"], stored.manifest["step"]) == (MODEL, 0)
    # The same adapter for a base that is there already.
    arguments = ["--base", volume.base, "--adapter", str(outside), "--model", MODEL]
    assert imported_by_job(arguments, capsys).adapter == report.adapter


@pytest.mark.parametrize("job", [importer.main, place.main], ids=["importer", "place"])
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--base", "sha256:0"],
        ["--directory", "/source", "--adapter", "/adapter"],
        ["--directory", "/source", "--model", "m"],
        ["--adapter", "/adapter", "--model", "m"],
    ],
)
def test_an_incomplete_order_is_refused(
    job: Callable[[list[str]], int], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit):
        job(arguments)


class Exploding:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "nested/x.pkl"])
@pytest.mark.parametrize("beside", [True, False])
def test_a_pickle_is_refused_and_not_read(
    volume: Volume, outside: Path, tmp_path: Path, name: str, *, beside: bool
) -> None:
    target = outside / name
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(pickle.dumps(Exploding(tmp_path / "trace")))
    if not beside:
        (outside / WEIGHTS).unlink()
    with pytest.raises(UserMistakeError, match="PickleRefused") as caught:
        imported(volume, outside)
    assert "safe_serialization" in caught.value.problem.remedy
    assert not (tmp_path / "trace").exists()
    assert not (volume.path / "checkpoints").exists()


Edit = Callable[[dict[str, torch.Tensor]], object]
FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
CONFIGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "rank": ({"r": 8}, "AdapterMismatch", "spec.adapter.rank: 8"),
    "alpha": ({"lora_alpha": 64}, "AdapterMismatch", "spec.adapter.alpha: 64"),
    "another method": ({"peft_type": "IA3"}, "UnsupportedAdapter", "plain LoRA"),
    "bias": ({"bias": "all"}, "UnsupportedAdapter", "plain LoRA"),
    "dora": ({"use_dora": True}, "UnsupportedAdapter", "use_dora"),
    "rslora": ({"use_rslora": True}, "UnsupportedAdapter", "use_rslora"),
    "modules": ({"modules_to_save": ["lm_head"]}, "UnsupportedAdapter", "modules_to_save"),
    "pissa": ({"init_lora_weights": "pissa"}, "UnsupportedAdapter", "pissa"),
}
TENSORS: dict[str, tuple[Edit, str, str]] = {
    "a weight less": (lambda s: s.pop(FIRST), "AdapterMismatch", f"lacks {FIRST}"),
    "a weight more": (lambda s: s.update(x=torch.ones(1)), "AdapterMismatch", "has besides x"),
    "another shape": (
        lambda s: s.update({FIRST: torch.ones(4, 3)}),
        *("AdapterMismatch", f"{FIRST} is [4, 3], must be [4, 128]"),
    ),
    "not finite": (
        lambda s: s.update({FIRST: s[FIRST] * torch.inf}),
        *("UnsupportedAdapter", f"{FIRST} is not finite"),
    ),
    "whole numbers": (
        lambda s: s.update({FIRST: s[FIRST].to(torch.int8)}),
        *("UnsupportedAdapter", "torch.int8"),
    ),
}


def refusal(volume: Volume, outside: Path) -> tuple[str, str]:
    with pytest.raises(UserMistakeError) as caught:
        imported(volume, outside)
    problem = caught.value.problem
    return problem.reason, f"{problem.detail}: {problem.remedy}"


@pytest.mark.parametrize("case", CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_that_would_be_lost_is_refused(
    volume: Volume, outside: Path, case: tuple[dict[str, Any], str, str]
) -> None:
    changes, reason, says = case
    path = outside / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    given, text = refusal(volume, outside)
    assert (given, says in text) == (reason, True), text


@pytest.mark.parametrize("case", TENSORS.values(), ids=TENSORS)
def test_weights_that_do_not_fit_are_refused_by_name(
    volume: Volume, outside: Path, case: tuple[Edit, str, str]
) -> None:
    edit, reason, says = case
    state = load_file(outside / WEIGHTS)
    edit(state)
    save_file(state, outside / WEIGHTS)
    given, text = refusal(volume, outside)
    assert (given, says in text) == (reason, True), text


def test_a_truncated_file_is_refused(volume: Volume, outside: Path) -> None:
    (outside / WEIGHTS).write_bytes((outside / WEIGHTS).read_bytes()[:100])
    assert refusal(volume, outside)[0] == "AdapterUnreadable"


def test_an_assignment_to_a_checkpoint_of_another_rank_names_the_difference(
    engine: Engine, volume: Volume, outside: Path
) -> None:
    stored = imported(volume, outside)
    with engine.state.store.staging("checkpoint") as staged:
        for path in stored.path.iterdir():
            (staged / path.name).write_bytes(path.read_bytes())
        state = load_file(stored.path / WEIGHTS)
        save_file({n: v[:2].contiguous() for n, v in state.items()}, staged / WEIGHTS)
        (staged / "manifest.json").unlink()
        metadata = {k: v for k, v in stored.manifest.items() if k not in {"kind", "files"}}
        other, _ = engine.state.store.commit("checkpoint", staged, metadata)
    with pytest.raises(CommandError) as caught:
        stand_on(engine, other)
    assert (caught.value.status, caught.value.problem.reason) == (409, "AdapterMismatch")
    assert f"{FIRST} is [2, 128], must be [4, 128]" in caught.value.problem.detail
    assert engine.state.report().term == 1


@pytest.mark.parametrize(("key", "field"), [("lora_rank", "rank"), ("lora_alpha", "alpha")])
def test_a_checkpoint_of_an_earlier_model_of_the_name_says_what_differs(
    engine: Engine, volume: Volume, outside: Path, key: str, field: str
) -> None:
    stored = imported(volume, outside)
    with engine.state.store.staging("checkpoint") as staged:
        for path in stored.path.iterdir():
            (staged / path.name).write_bytes(path.read_bytes())
        (staged / "manifest.json").unlink()
        metadata = {k: v for k, v in stored.manifest.items() if k not in {"kind", "files"}}
        other, _ = engine.state.store.commit("checkpoint", staged, {**metadata, key: 99})
    with pytest.raises(CommandError) as caught:
        stand_on(engine, other)
    problem = caught.value.problem
    assert (caught.value.status, problem.reason) == (409, "AdapterMismatch")
    assert f"spec.adapter.{field} 99" in problem.detail
    assert f"create the model with spec.adapter.{field} 99 or under another name" in problem.remedy
