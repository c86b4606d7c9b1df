"""A tiny random Qwen3 with Qwen3's chat template and the tokens that it has beside its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

TEMPLATE = Path(__file__).parent / "templates" / "qwen3.jinja"
END = "<|im_end|>"
WORDS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def make_tokenizer(texts: Sequence[str] = ()) -> FastTokenizer:
    """Byte-level, trained on the template's own text; of these texts whole phrases are tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not texts)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700 if texts else 500,
        special_tokens=[END, "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    template = TEMPLATE.read_text()
    tokenizer.train_from_iterator([template, *texts], trainer)
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in WORDS])
    fast = FastTokenizer(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    fast.chat_template = template
    return fast


@dataclass(frozen=True)
class Size:
    """Width of the layers, spread of their weights, tokens of context; ``tied``: head and input."""

    width: int = 64
    spread: float = 0.2
    context: int = 1024
    tied: bool = True


# A LoRA adapter of rank 8 teaches this one a short text in 40 steps; the small one it hardly moves.
TEACHABLE = Size(width=256, spread=0.1, context=4096, tied=False)


def make_model(directory: Path, size: Size = Size(), texts: Sequence[str] = ()) -> Path:
    """Write a Qwen3 with 2 layers, and a tokenizer that knows these texts."""
    tokenizer = make_tokenizer(texts)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(7)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=2 * size.width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=size.context,
        initializer_range=size.spread,
        tie_word_embeddings=size.tied,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).to(torch.float32).save_pretrained(directory)
    return directory
