"""A tiny random Llama, its tokenizer and LoRA adapters, laid out on a volume as the trainer's."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

from espalier.core.volume import checkpoints_of

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXT = ["What is 1 + 2? Answer with just the number.", "the quick brown fox", "0123456789 abc xyz"]


def make_model(directory: Path, *, tied: bool = True) -> Path:
    """Write a Llama of hidden size 64 with 2 layers, and a byte-level tokenizer of 400 entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = FastTokenizer(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        eos_token_id=fast.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(directory)
    return directory


def commit(folder: Path, source: Path, kind: str, **metadata: Any) -> str:
    """Put a directory's files under their digest, manifest last; returns the digest."""
    files = {
        file.name: {
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "size": file.stat().st_size,
        }
        for file in sorted(source.iterdir())
        if file.is_file()
    }
    manifest = {"kind": kind, "files": files, **metadata}
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(canonical).hexdigest()
    target = folder / f"sha256-{digest}"
    if not target.exists():
        target.mkdir(parents=True)
        for name in files:
            shutil.copyfile(source / name, target / name)
        (target / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return f"sha256:{digest}"


def commit_base(volume: Path, model_directory: Path) -> str:
    return commit(volume / "bases", model_directory, "base", uri="test")


def commit_adapter(
    volume: Path,
    model_directory: Path,
    base: str,
    *,
    seed: int,
    rank: int = 4,
    scale: float = 0.1,
    targets: str | list[str] = "all-linear",
) -> str:
    """Commit a random LoRA adapter over all linear layers but the head; returns its digest."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    adapted = get_peft_model(model, lora)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=scale)
    with tempfile.TemporaryDirectory() as scratch:
        adapted.save_pretrained(scratch)
        source = Path(scratch)
        (source / "README.md").unlink(missing_ok=True)
        return commit_checkpoint(volume, source, base, rank)


def commit_full(volume: Path, model_directory: Path, base: str, *, seed: int) -> str:
    """Commit the model with all its weights moved at random, in two shards or more."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(model_directory, scratch, dirs_exist_ok=True)
        (Path(scratch) / "model.safetensors").unlink()
        model.save_pretrained(scratch, max_shard_size="200KB")
        return commit_checkpoint(volume, Path(scratch), base, 0, adapter_type="Full")


def commit_checkpoint(
    volume: Path,
    source: Path,
    base: str,
    rank: int,
    *,
    adapter_type: str = "LoRA",
    model: str = "arith",
) -> str:
    """Commit files as a checkpoint with the metadata that the trainer writes."""
    return commit(
        checkpoints_of(volume, model),
        source,
        "checkpoint",
        model=model,
        base=base,
        run="default/run",
        step=1,
        run_step=1,
        branch="main",
        term=1,
        parent="",
        parent_name="",
        session="s",
        seq=1,
        adapter_type=adapter_type,
        lora_rank=rank,
        lora_alpha=2 * rank,
    )
