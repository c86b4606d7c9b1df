"""Tiny random models of the families that the memory model must know."""

from __future__ import annotations

import torch
import transformers as hf
from transformers import AutoModelForCausalLM

from espalier.api.model.adapter import Adapter
from espalier.trainer.policy.policy import Policy

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
}
FAMILIES = {
    "llama": hf.LlamaConfig,
    "qwen2": hf.Qwen2Config,
    "qwen3": hf.Qwen3Config,
    "mistral": hf.MistralConfig,
    "gemma": hf.GemmaConfig,
}


def family_policy(family: str, dtype: torch.dtype) -> Policy:
    torch.manual_seed(0)
    config = FAMILIES[family](**SIZES)
    causal_lm = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return Policy(causal_lm, Adapter(rank=8, alpha=8, seed=1), torch.device("cpu"))
