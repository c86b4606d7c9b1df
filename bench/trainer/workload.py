"""What every variant works on: the same random model, the same adapter and the same batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from espalier.api.model.adapter import Adapter
from espalier.trainer.batch.data import Datum
from espalier.trainer.policy.policy import Policy


@dataclass(frozen=True)
class Workload:
    """A model shape and a batch of ``groups`` prompts with ``group_size`` completions each.

    Completion lengths are uniform in ``shortest`` to ``longest``, drawn with ``seed``.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    rank: int
    groups: int
    group_size: int
    prompt: int
    shortest: int
    longest: int
    seed: int
    dtype: str = "float32"


# 9,440 padded, 6,400 real and about 3,600 unique tokens: the seed is the first that gives them.
SMALL = Workload(32_000, 512, 6, 8, 4, 64, 1024, 16, 4, 8, 100, 20, 200, 29_380)
# Runs in a second: for tests of the benchmark itself, and for float64.
TINY = Workload(256, 32, 2, 4, 2, 8, 64, 4, 2, 3, 9, 3, 14, 0)
QWEN3_4B = Workload(
    151_936, 2560, 36, 32, 8, 128, 9728, 32, 4, 8, 512, 512, 1536, 0, dtype="bfloat16"
)
WORKLOADS = {
    "32k": SMALL,
    "152k": replace(SMALL, vocabulary=151_936),
    "tiny": TINY,
    "qwen3-4b": QWEN3_4B,
}


def causal_lm(work: Workload, dtype: torch.dtype, device: torch.device) -> Any:
    """A Qwen3 with random weights, the same on every call."""
    config = Qwen3Config(
        vocab_size=work.vocabulary,
        hidden_size=work.hidden,
        num_hidden_layers=work.layers,
        num_attention_heads=work.heads,
        num_key_value_heads=work.kv_heads,
        head_dim=work.head_size,
        intermediate_size=work.mlp,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(work.seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def policy(work: Workload, dtype: torch.dtype, device: torch.device) -> Policy:
    """The trainer's policy with an adapter that changes the model (a fresh one has B = 0)."""
    adapter = Adapter(rank=work.rank, alpha=2 * work.rank)
    result = Policy(causal_lm(work, dtype, device), adapter, device)
    generator = torch.Generator().manual_seed(work.seed + 1)
    with torch.no_grad():
        for name, parameter in sorted(result.parameters.items()):
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return result


def batch(work: Workload) -> list[Datum]:
    """``groups * group_size`` datums; the sampler's log-probs are near those of random weights."""
    rng = np.random.default_rng(work.seed)
    lengths = rng.integers(work.shortest, work.longest + 1, (work.groups, work.group_size))
    data = []
    for group, row in enumerate(lengths):
        prompt = tuple(rng.integers(0, work.vocabulary, work.prompt).tolist())
        for member, length in enumerate(row):
            data.append(
                Datum(
                    prompt=prompt,
                    output=tuple(rng.integers(0, work.vocabulary, length).tolist()),
                    sampling_logprobs=tuple(
                        (-np.log(work.vocabulary) + 0.1 * rng.standard_normal(length)).tolist()
                    ),
                    advantage=float(rng.standard_normal()),
                    reward=0.0,
                    trajectory=group * work.group_size + member,
                    group=group,
                )
            )
    return data
