"""The memory of a forward and backward: what the planner predicts, and what the process used.

``python -m tests.trainer.peak FAMILY SHAPE CHECKPOINTING`` measures in a process of its own: the
kernel's high-water mark of resident memory, reset once the model is loaded and warm.
"""

from __future__ import annotations

import argparse
import json
import random
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from espalier.api.trainablemodel import Adapter
from espalier.trainer import gradients, memory
from espalier.trainer.data import Datum
from espalier.trainer.exhaustion import attempt
from espalier.trainer.losses import loss_spec
from espalier.trainer.model import Policy
from espalier.trainer.plan import FLOAT32_BYTES
from espalier.trainer.planner import Cut

SHAPES = {
    # hidden, intermediate, layers, heads, KV heads, head size, vocabulary; tokens of a sequence.
    "tiny": ((256, 512, 4, 4, 2, 64, 4096), 1024),
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
SEQUENCES = 4


@dataclass(frozen=True)
class Peak:
    """Bytes over what is held between batches."""

    predicted: int
    measured: int

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured


def measure(family: str, shape: str, *, checkpointing: bool) -> Peak:
    """In a thread as the engine has one: another than the first has an arena of its own."""
    with ThreadPoolExecutor(max_workers=1) as engine:
        return engine.submit(_measure, family, shape, checkpointing=checkpointing).result()


def _measure(family: str, shape: str, *, checkpointing: bool) -> Peak:
    """One row of a group: a shared prompt and four outputs."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes, length = SHAPES[shape]
    config = AutoConfig.for_model(
        family, max_position_embeddings=4096, **dict(zip(NAMES, sizes, strict=True))
    )
    causal_lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    policy = Policy(causal_lm, Adapter(rank=16, alpha=32), torch.device("cpu"))
    planner = memory.measure(policy, {memory.MEMORY_VARIABLE: str(1 << 40)})
    spec = loss_spec("importance_sampling", None)

    def step(data: list[Datum]) -> int:
        plan = planner.cut(data, Cut(1 << 20, checkpointing))
        recut = planner.cut
        attempt(
            policy,
            plan,
            lambda cut: recut(data, cut),
            lambda rows: gradients.add_loss(policy, rows, spec, 1.0, None),
        )
        return plan.needed

    step(_group(16, sizes[-1]))
    policy.drop_gradients()
    held = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    predicted = step(_group(length, sizes[-1]))
    # The planner keeps room for gradients apart from that for a batch.
    trained = sum(parameter.numel() for parameter in policy.parameters.values())
    return Peak(predicted + FLOAT32_BYTES * trained, _status("VmHWM") - held)


def _group(length: int, vocabulary: int) -> list[Datum]:
    generator = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(generator.randrange(vocabulary) for _ in range(count))

    prompt, size = tokens(length // 2), length // 2
    return [
        Datum(prompt, tokens(size), (-1.0,) * size, 1.0, 0.0, index, 0)
        for index in range(SEQUENCES)
    ]


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"the kernel does not tell {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Predicted and measured memory of a batch")
    parser.add_argument("family")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("checkpointing", choices=["plain", "checkpointed"])
    given = parser.parse_args()
    way = given.checkpointing == "checkpointed"
    # A process that finds the alignment set before it imports torch.
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        found = process.submit(measure, given.family, given.shape, checkpointing=way).result()
    print(json.dumps({**asdict(found), "ratio": round(found.ratio, 2)}))


if __name__ == "__main__":
    main()
