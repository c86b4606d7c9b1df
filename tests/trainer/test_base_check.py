"""A base is opened before it is taken: what could not be trained and served is refused by name."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from dev import served_architectures
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.trainer import tiny
from tests.trainer.importing import import_directory
from tests.trainer.tiny import ADAPTER, FULL

from espalier.trainer.jobs import base_check
from espalier.trainer.jobs.base_check import context_tokens, inspect
from espalier.trainer.policy.policy import load_policy
from espalier.trainer.problems import UserMistakeError
from espalier.trainer.volume.base_files import Wanted
from espalier.trainer.volume.checkpoint_store import CheckpointStore

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
WANTED = Wanted(ADAPTER)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A complete base with a head of its own."""
    directory = tmp_path / "base"
    tiny.causal_lm(tied=False).save_pretrained(directory)
    tiny.tokenizer().save_pretrained(directory)
    return directory


def refusal(base: Path, wanted: Wanted = WANTED) -> tuple[str, str]:
    """The reason, and detail with remedy."""
    with pytest.raises(UserMistakeError) as caught:
        inspect(base, wanted)
    problem = caught.value.problem
    return problem.reason, f"{problem.detail}: {problem.remedy}"


def configure(base: Path, **changes: Any) -> None:
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit(base: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(base / WEIGHTS)
    change(state)
    save_file(state, base / WEIGHTS, metadata={"format": "pt"})


def shard(base: Path) -> None:
    """The same weights in two files and an index."""
    state = load_file(base / WEIGHTS)
    (base / WEIGHTS).unlink()
    names = sorted(state)
    parts = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for file, held in parts.items():
        save_file({n: state[n] for n in held}, base / file, metadata={"format": "pt"})
    mapping = {name: file for file, held in parts.items() for name in held}
    (base / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": mapping}))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("adapter", [ADAPTER, FULL], ids=["LoRA", "Full"])
def test_a_complete_base_is_taken(base: Path, adapter: Any, *, sharded: bool) -> None:
    if sharded:
        shard(base)
    facts = inspect(base, Wanted(adapter))
    assert (facts.context_tokens, facts.chat_template) == (128, True)


def test_a_tied_head_needs_no_weights_of_its_own(tmp_path: Path) -> None:
    tiny.write_model(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / WEIGHTS)
    assert inspect(tmp_path / "tied", WANTED).context_tokens == 128


def pointer(base: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 134217728\n"
    (base / WEIGHTS).write_text(text)


def lost_shard(base: Path) -> None:
    shard(base)
    (base / "model-2.safetensors").unlink()


def empty_shard(base: Path) -> None:
    shard(base)
    save_file({"x": torch.ones(1)}, base / "model-2.safetensors", metadata={"format": "pt"})


def adapter_alone(base: Path) -> None:
    adapted = get_peft_model(tiny.causal_lm(), LoraConfig(target_modules="all-linear"))
    shutil.rmtree(base)
    adapted.save_pretrained(base)


def pickled(base: Path) -> None:
    (base / WEIGHTS).unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def consolidated(base: Path) -> None:
    (base / WEIGHTS).rename(base / "consolidated.safetensors")


def truncated(base: Path) -> None:
    (base / WEIGHTS).write_bytes((base / WEIGHTS).read_bytes()[:-1])


def no_tokenizer(base: Path) -> None:
    for path in base.glob("token*"):
        path.unlink()


def broken_tokenizer(base: Path) -> None:
    (base / "tokenizer.json").write_text("{}")


def wrapped(base: Path) -> None:
    edit(base, lambda s: [s.__setitem__(f"module.{n}", s.pop(n)) for n in list(s)])


def outside(base: Path) -> None:
    (base.parent / "elsewhere.json").write_text("{}")
    (base / "extra.json").symlink_to(base.parent / "elsewhere.json")


Damage = Callable[[Path], object]
FILES: dict[str, tuple[Damage, str, tuple[str, ...]]] = {
    "a Git LFS pointer": (pointer, "BaseUnreadable", (WEIGHTS, "git lfs pull")),
    "a shard is absent": (lost_shard, "BaseUnreadable", ("model-2.safetensors", "not there")),
    "a shard of another model": (empty_shard, "BaseUnreadable", ("model-2.safetensors", "lacks")),
    "an adapter alone": (adapter_alone, "BaseUnreadable", ("a LoRA adapter", "source.adapter")),
    "pickles alone": (pickled, "PickleRefused", ("pytorch_model.bin", "safe_serialization")),
    "another program's form": (
        consolidated,
        *("BaseUnreadable", ("consolidated.safetensors", "save_pretrained")),
    ),
    "cut short": (truncated, "BaseUnreadable", (WEIGHTS, "cut short")),
    "no tokenizer": (no_tokenizer, "BaseUnreadable", ("no tokenizer", "tokenizer.json")),
    "a broken tokenizer": (broken_tokenizer, "UnsupportedBase", ("the tokenizer",)),
    "a link that leads out": (outside, "BaseUnreadable", ("extra.json", "leads out")),
}
TENSORS: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "a head that is missing": (
        lambda b: edit(b, lambda s: s.pop("lm_head.weight")),
        ("they lack lm_head.weight",),
    ),
    "one that nobody knows": (
        lambda b: edit(b, lambda s: s.update(stray=torch.ones(1))),
        ("they have besides stray",),
    ),
    "another shape": (
        lambda b: edit(b, lambda s: s.update({"model.norm.weight": torch.ones(3)})),
        ("model.norm.weight is [3], must be [64]",),
    ),
    "wrapped names": (wrapped, ("they lack lm_head.weight", "module.lm_head.weight")),
    "more layers in the configuration": (
        lambda b: configure(b, num_hidden_layers=3),
        ("they lack model.layers.2.", " more"),
    ),
}
CONFIGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no LoRA in vLLM": ({"architectures": ["GPT2LMHeadModel"]}, ("GPT2LMHeadModel", "type: Full")),
    "unknown to vLLM": ({"architectures": ["NoSuchForCausalLM"]}, ("does not serve NoSuch",)),
    "no architecture": ({"architectures": None}, ("names no architectures",)),
    "multimodal": ({"vision_config": {"depth": 2}}, ("multimodal", "vision_config")),
    "quantised": (
        {"quantization_config": {"quant_method": "fp8"}},
        ("quantised", "bfloat16"),
    ),
    "layers without end": ({"num_hidden_layers": 10**9}, ("1000000000", "1 to 1000")),
    "unknown to transformers": ({"model_type": "nosuch"}, ("config.json cannot be loaded",)),
}


@pytest.mark.parametrize("case", FILES.values(), ids=FILES)
def test_files_that_are_not_a_base_are_refused_by_name(
    base: Path, case: tuple[Damage, str, tuple[str, ...]]
) -> None:
    damage, reason, says = case
    damage(base)
    given, text = refusal(base)
    assert (given, [s for s in says if s not in text]) == (reason, []), text


@pytest.mark.parametrize("case", TENSORS.values(), ids=TENSORS)
def test_tensors_that_do_not_fit_are_named(
    base: Path, case: tuple[Damage, tuple[str, ...]]
) -> None:
    damage, says = case
    damage(base)
    given, text = refusal(base)
    assert (given, [s for s in says if s not in text]) == ("BaseUnreadable", []), text


@pytest.mark.parametrize("case", CONFIGS.values(), ids=CONFIGS)
def test_a_base_that_cannot_be_served_as_the_model_wants_is_refused(
    base: Path, case: tuple[dict[str, Any], tuple[str, ...]]
) -> None:
    changes, says = case
    configure(base, **changes)
    given, text = refusal(base)
    assert (given, [s for s in says if s not in text]) == ("UnsupportedBase", []), text


def test_code_of_the_base_is_not_run(base: Path, tmp_path: Path) -> None:
    (base / "modeling.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    configure(base, model_type="own", auto_map={"AutoConfig": "modeling.Config"})
    assert refusal(base)[0] == "UnsupportedBase"
    assert not (tmp_path / "trace").exists()


def test_an_architecture_without_adapters_can_be_trained_in_full() -> None:
    assert "GPT2LMHeadModel" in base_check.served(adapters=False)
    assert "GPT2LMHeadModel" not in base_check.served(adapters=True)


def test_the_list_of_architectures_is_that_of_the_vllm_that_is_installed() -> None:
    assert json.loads(base_check.SERVED.read_text()) == served_architectures.listed()


def test_the_list_agrees_with_the_classes_themselves() -> None:
    from vllm.model_executor.models import falcon, gpt2, llama, qwen3, stablelm
    from vllm.model_executor.models.interfaces import supports_lora

    # By the name that a config.json gives the architecture.
    classes = {
        "LlamaForCausalLM": llama.LlamaForCausalLM,
        "Qwen3ForCausalLM": qwen3.Qwen3ForCausalLM,
        "GPT2LMHeadModel": gpt2.GPT2LMHeadModel,
        "FalconForCausalLM": falcon.FalconForCausalLM,
        "StableLmForCausalLM": stablelm.StablelmForCausalLM,
    }
    listed = base_check.served(adapters=True)
    assert {name: supports_lora(of) for name, of in classes.items()} == {
        name: name in listed for name in classes
    }


TEMPLATE = "{{ bos_token }}{{ messages[0]['content'] }}!"


def untemplated(base: Path) -> None:
    (base / "chat_template.jinja").unlink()


def test_a_base_without_a_chat_template_is_taken_and_known_as_such(base: Path) -> None:
    untemplated(base)
    assert not inspect(base, WANTED).chat_template


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}"
)


def closes_turns(base: Path, template: str, *ends: int) -> int:
    """Gives a base a template and the end tokens of its generation_config; the id of im_end."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(base)
    end: int = tokenizer.convert_tokens_to_ids("<|im_end|>")
    listed = [end if chosen < 0 else chosen for chosen in ends]
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    return end


def test_a_template_that_closes_turns_with_a_token_that_ends_nothing_is_known_for_it(
    base: Path,
) -> None:
    end = closes_turns(base, CHATML, 2)
    found = inspect(base, WANTED).unstopped
    assert found is not None
    assert (found.token, found.token_id) == ("<|im_end|>", end)


def test_without_a_generation_config_the_models_own_ends_count(base: Path) -> None:
    end = closes_turns(base, CHATML)
    (base / "generation_config.json").unlink()
    configure(base, eos_token_id=[2, end])
    assert inspect(base, WANTED).unstopped is None
    configure(base, eos_token_id=2)
    assert inspect(base, WANTED).unstopped is not None


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        # Instruct models list it beside the tokenizer's own.
        (CHATML, [2, -1]),
        (CHATML.replace("<|im_end|>", "{{ eos_token }}"), [2]),
        # Nothing says where a turn ends.
        (CHATML.replace("<|im_end|>", ""), [2]),
        # It takes no chat that ends with the assistant.
        (
            CHATML + "{% if messages[-1]['role'] == 'assistant' %}"
            "{{ raise_exception('no') }}{% endif %}",
            [2],
        ),
    ],
)
def test_no_other_template_is_known_for_it(base: Path, template: str, ends: list[int]) -> None:
    closes_turns(base, template, *ends)
    assert inspect(base, WANTED).unstopped is None


def test_a_given_chat_template_is_part_of_the_base(base: Path, tmp_path: Path) -> None:
    untemplated(base)
    assert inspect(base, Wanted(ADAPTER, TEMPLATE)).chat_template
    store = CheckpointStore(tmp_path / "volume", "importer")
    plain = import_directory(store, base)
    stored = import_directory(store, base, TEMPLATE)
    assert stored.digest != plain.digest
    loaded = hf.AutoTokenizer.from_pretrained(stored.path)
    chat = [{"role": "user", "content": "1+1"}]
    assert loaded.apply_chat_template(chat, tokenize=False) == "<s>1+1!"


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('no') }}"])
def test_a_given_chat_template_that_cannot_render_is_refused(base: Path, template: str) -> None:
    given, text = refusal(base, Wanted(ADAPTER, template))
    assert (given, "spec.source.base.chatTemplate" in text) == ("ChatTemplateInvalid", True), text


LENGTHS: dict[str, hf.PretrainedConfig] = {
    "plain": hf.LlamaConfig(max_position_embeddings=512),
    "linear": hf.LlamaConfig(
        max_position_embeddings=512,
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    ),
    "yarn": hf.Qwen2Config(
        max_position_embeddings=512,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 1e4,
            "original_max_position_embeddings": 128,
        },
    ),
    "gpt2": hf.GPT2Config(n_positions=96),
    "gemma3": hf.Gemma3TextConfig(max_position_embeddings=512),
}


@pytest.mark.parametrize("config", LENGTHS.values(), ids=LENGTHS)
def test_the_context_is_what_vllm_takes(config: hf.PretrainedConfig) -> None:
    from types import SimpleNamespace

    from vllm.config.model import _get_and_verify_max_len
    from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

    found = ModelArchConfigConvertorBase(config, config).derive_max_model_len_and_key()
    told = SimpleNamespace(derived_max_model_len_and_key=found)
    theirs = _get_and_verify_max_len(config, told, None, None, False, None)
    assert context_tokens(config) == theirs


def test_a_trainer_refuses_a_base_that_was_imported_without_its_head(base: Path) -> None:
    edit(base, lambda s: s.pop("lm_head.weight"))
    with pytest.raises(UserMistakeError, match=r"lacks lm_head\.weight"):
        load_policy(base, ADAPTER, "float32")
