"""Makes the tiny random model of the tests: a Llama of 0.1 M parameters, one character a token.

Its vocabulary is digits and a few signs, so that a random model answers "which digit" questions
rightly now and then: groups have spread, and reinforcement learning has something to learn.

    python dev/tiny_model.py DIRECTORY [SPREAD]
"""

from __future__ import annotations

import string
import sys
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
CHARACTERS = string.digits + " \n+-*=?.,:"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}={% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; anything else is unknown."""
    tokens = [PAD, BOS, EOS, UNKNOWN, *CHARACTERS]
    inner = Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN)
    )
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    inner.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=512,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def model(vocabulary: int, seed: int = 0, spread: float | None = None) -> LlamaForCausalLM:
    """Two layers of width 64, float32; heads of 32 because vLLM's CPU attention asks for it.

    ``spread``: standard deviation of the weights. With the usual 0.02 an adapter can hardly move
    the output; with 0.2 it learns to answer.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=spread is None,
        initializer_range=0.02 if spread is None else spread,
        dtype="float32",
    )
    return LlamaForCausalLM(config).to(torch.float32)


def make(directory: Path, spread: float | None = None) -> Path:
    """Writes config, weights and tokenizer; the same bytes every time."""
    directory.mkdir(parents=True, exist_ok=True)
    words = tokenizer()
    model(len(words), spread=spread).save_pretrained(directory)
    words.save_pretrained(directory)
    for path in directory.iterdir():
        path.chmod(0o644)
    return directory


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else None))
