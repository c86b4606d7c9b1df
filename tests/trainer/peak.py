"""Compares the memory that the planner predicts for a step with what the process used.

``python -m tests.trainer.peak [WORD...] [--times N]`` measures the cases that match all the words;
commas separate alternatives (``llama,phi tiny plain``). Each case runs in its own process, which
reads the kernel's high-water mark of resident memory, reset once the model is loaded and warm.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# Before torch, for which it sets how large blocks are aligned.
import espalier.trainer  # noqa: F401

# isort: split
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from espalier.api.model.adapter import Adapter
from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.losses import loss_spec
from espalier.trainer.compute import gradients
from espalier.trainer.compute import measure as memory
from espalier.trainer.compute.retry import attempt
from espalier.trainer.memory import host
from espalier.trainer.memory.cost_model import FLOAT32_BYTES
from espalier.trainer.memory.planner import Cut
from espalier.trainer.policy.policy import Policy

SHAPES = {
    # hidden, intermediate, layers, heads, KV heads, head size, vocabulary; tokens of a sequence.
    "tiny": ((256, 512, 4, 4, 2, 64, 4096), 1024),
    "deep": ((256, 512, 16, 4, 2, 64, 4096), 512),
    "0.1B": ((768, 2048, 10, 12, 4, 64, 32000), 512),
}
NAMES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
FAST = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma3_text")
PADDED: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 64},
    "phi": {},
    "gpt_neox": {},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
}
WAYS = ("plain", "checkpointed")
ROWS = 1 << 20


@dataclass(frozen=True)
class Case:
    """``batch``: one of ``BATCHES``."""

    family: str
    shape: str
    way: str
    dtype: str = "float32"
    adapter: str = "LoRA"
    batch: str = "group"


def cases() -> Iterator[Case]:
    """Everything that is measured."""
    for family, shape, way in product(FAST, ("tiny", "0.1B"), WAYS):
        yield Case(family, shape, way)
    for family, way in product(("llama", "gemma"), WAYS):
        yield Case(family, "deep", way)
        yield Case(family, "tiny", way, dtype="bfloat16")
        yield Case(family, "tiny", way, adapter="Full")
        for batch in list(BATCHES)[1:]:
            yield Case(family, "tiny", way, batch=batch)
    for family, way in product(PADDED, WAYS):
        yield Case(family, "tiny", way)
        yield Case(family, "tiny", way, dtype="bfloat16")
        for batch in list(BATCHES)[1:]:
            yield Case(family, "tiny", way, batch=batch)
    for family, way in product(("gemma2", "phi"), WAYS):
        yield Case(family, "0.1B", way)


@dataclass(frozen=True)
class Peak:
    """Bytes beyond those held between batches."""

    predicted: int
    measured: int

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured


def measure(case: Case) -> Peak:
    """Measures in a second thread, as the engine does: glibc gives it its own arena."""
    with ThreadPoolExecutor(max_workers=1) as engine, tempfile.TemporaryDirectory() as base:
        return engine.submit(_measure, case, Path(base)).result()


def _measure(case: Case, base: Path) -> Peak:
    policy = _policy(case, base)
    planner = memory.measure(policy, {host.MEMORY_VARIABLE: str(1 << 40)})
    spec = loss_spec("importance_sampling", None)

    def step(data: list[Datum], row_tokens: int = ROWS) -> int:
        plan = planner.cut(data, Cut(row_tokens, case.way == "checkpointed"))
        recut = planner.cut
        attempt(
            policy,
            plan,
            lambda cut: recut(data, cut),
            lambda rows: gradients.add_loss(policy, rows, spec, None),
        )
        policy.drop_gradients()
        return plan.needed

    vocabulary = policy.limits.vocabulary
    step(_sequences(vocabulary, 8, 8, 2))
    held = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    sizes, row_tokens = BATCHES[case.batch]
    length = SHAPES[case.shape][1]
    predicted = max(
        step(_sequences(vocabulary, length * prompt // 8, length * output // 8, count), row_tokens)
        for prompt, output, count in sizes
    )
    # The planner reserves gradients separately, so they are not in the prediction of a batch.
    trained = sum(parameter.numel() for parameter in policy.parameters.values())
    return Peak(predicted + FLOAT32_BYTES * trained, _status("VmHWM") - held)


def _policy(case: Case, base: Path) -> Policy:
    torch.manual_seed(0)
    sizes, _ = SHAPES[case.shape]
    config = AutoConfig.for_model(
        case.family,
        max_position_embeddings=4096,
        **(dict(zip(NAMES, sizes, strict=True)) | PADDED.get(case.family, {})),
    )
    causal_lm = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case.dtype))
    if case.adapter == "LoRA":
        return Policy(causal_lm, Adapter(rank=16, alpha=32), torch.device("cpu"))
    causal_lm.save_pretrained(base)
    return Policy(causal_lm, Adapter(type="Full"), torch.device("cpu"), base)


# Eighths of a sequence in the prompt and in each output, and how many outputs; tokens of a row.
BATCHES: dict[str, tuple[list[tuple[int, int, int]], int]] = {
    "group": ([(4, 4, 4)], ROWS),
    "chain": ([(4, 12, 1)], ROWS),
    "rows": ([(1, 1, 24)], 1),
    "several": ([(1, 2, 3), (4, 4, 4), (2, 1, 8), (4, 2, 4), (3, 4, 4), (4, 4, 4)], ROWS),
}


def _sequences(vocabulary: int, prompt: int, output: int, count: int) -> list[Datum]:
    """A group: a shared prompt and outputs."""
    generator = random.Random(0)

    def tokens(size: int) -> tuple[int, ...]:
        return tuple(generator.randrange(vocabulary) for _ in range(size))

    shared = tokens(prompt)
    return [
        Datum(shared, tokens(output), (-1.0,) * output, 1.0, 0.0, index, 0)
        for index in range(count)
    ]


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {name}")


def chosen(words: Sequence[str]) -> list[Case]:
    """The cases that match every word; commas in a word separate alternatives."""
    wanted = [set(word.split(",")) for word in words]
    return [case for case in cases() if all(word & set(asdict(case).values()) for word in wanted)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Predicted and measured memory of batches")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--times", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = [case for case in chosen(given.words) for _ in range(given.times)]
    # Forked, because importing torch takes seconds.
    with get_context("fork").Pool(1, maxtasksperchild=1) as processes:
        for case, peak in zip(found, processes.imap(measure, found, chunksize=1), strict=True):
            print(json.dumps(asdict(case) | asdict(peak) | {"ratio": peak.ratio}), flush=True)


if __name__ == "__main__":
    main()
