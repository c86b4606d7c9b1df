"""A tiny random Qwen3 with Qwen3's chat template and the tokens that it has beside its text."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

TEMPLATE = Path(__file__).parent / "templates" / "qwen3.jinja"
END = "<|im_end|>"
WORDS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def make_tokenizer() -> FastTokenizer:
    """Byte-level, trained on the template's own text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[END, "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    template = TEMPLATE.read_text()
    tokenizer.train_from_iterator([template], trainer)
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in WORDS])
    fast = FastTokenizer(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    fast.chat_template = template
    return fast


def make_model(directory: Path) -> Path:
    """Write a Qwen3 of hidden size 64 with 2 layers."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(directory)
    torch.manual_seed(7)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=0.2,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).to(torch.float32).save_pretrained(directory)
    return directory
