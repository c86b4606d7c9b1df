"""Export: what PEFT, vLLM and Hugging Face load says what the trainer's policy says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.trainer import tiny
from tests.trainer.tiny import Volume
from transformers import AutoModelForCausalLM

from espalier.trainer.batch.data import Datum
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine.engine import Engine
from espalier.trainer.jobs.export import Wanted, export
from espalier.trainer.problems import UserMistakeError

PROMPT, OUTPUT = (5, 9, 200, 31), (7, 77, 177, 3, 250)
NAME = "arith-000001"


@pytest.fixture
def trained(engine: Engine) -> Engine:
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 0))
    tiny.send(engine, "optim-step", tiny.optim_step(learning_rate=0.1), ("s", 1))
    return engine


def trainers_logprobs(engine: Engine) -> torch.Tensor:
    assert isinstance(engine.state.compute, LocalCompute)
    datum = Datum(PROMPT, OUTPUT, (), 0.0, 0.0, 0, None)
    return torch.tensor(engine.state.compute.score(engine.state.compute.admit([datum]))[0])


def logprobs(model: Any) -> torch.Tensor:
    ids = torch.tensor([PROMPT + OUTPUT])
    with torch.no_grad():
        scored = model(input_ids=ids).logits[0, len(PROMPT) - 1 : -1].float().log_softmax(-1)
    return scored.gather(1, torch.tensor(OUTPUT)[:, None]).squeeze(1)


def difference(model: Any, engine: Engine) -> float:
    return float((logprobs(model) - trainers_logprobs(engine)).abs().max())


def base_of(volume: Volume) -> Any:
    path = volume.path / "bases" / volume.base.replace(":", "-")
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def test_an_exported_adapter_gives_the_trainers_log_probs_in_peft(
    trained: Engine, volume: Volume, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "adapter"
    export(volume.path, NAME, output, Wanted(base_name="owner/name"), force=False)
    assert difference(base_of(volume), trained) > 0.1
    assert difference(PeftModel.from_pretrained(base_of(volume), output), trained) <= 1e-5
    config = json.loads((output / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/name"
    assert {p.name for p in output.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }


@dataclass(frozen=True)
class Rounded:
    """A dtype asked for, the one written and what the rounding may cost."""

    asked: str
    written: torch.dtype
    tolerance: float


@pytest.mark.parametrize(
    "case",
    [
        Rounded("base", torch.float32, 1e-5),
        Rounded("float32", torch.float32, 1e-5),
        # Every weight is rounded to 8 bits of mantissa.
        Rounded("bfloat16", torch.bfloat16, 0.3),
    ],
    ids=lambda case: case.asked,
)
def test_a_merged_model_gives_the_trainers_log_probs(
    trained: Engine, volume: Volume, tmp_path: Path, case: Rounded
) -> None:
    digest = trained.state.commits[0].digest
    output = tmp_path / "merged"
    export(volume.path, digest, output, Wanted(merged=True, dtype=case.asked), force=False)
    merged = AutoModelForCausalLM.from_pretrained(output)
    assert merged.dtype == case.written
    assert difference(merged.float(), trained) <= case.tolerance
    assert (output / "tokenizer.json").is_file()
    assert not (output / "adapter_config.json").exists()


def test_an_output_that_exists_is_replaced_only_by_force(
    trained: Engine, volume: Volume, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine").write_text("kept")
    with pytest.raises(UserMistakeError, match="OutputExists"):
        export(volume.path, NAME, output, Wanted(), force=False)
    assert (output / "mine").read_text() == "kept"
    export(volume.path, NAME, output, Wanted(), force=True)
    assert not (output / "mine").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".tmp-")] == []


def test_a_damaged_checkpoint_is_not_exported(
    trained: Engine, volume: Volume, tmp_path: Path
) -> None:
    stored = trained.state.store.open("checkpoint", trained.state.commits[0].digest)
    weights = stored.path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(UserMistakeError, match="corrupt"):
        export(volume.path, NAME, tmp_path / "out", Wanted(), force=True)
    assert not (tmp_path / "out").exists()


def test_an_unknown_name_says_how_to_name_a_checkpoint(volume: Volume, tmp_path: Path) -> None:
    with pytest.raises(UserMistakeError, match="no checkpoint of the name") as caught:
        export(volume.path, "arith-000009", tmp_path / "out", Wanted(), force=False)
    assert "digest" in caught.value.problem.remedy
