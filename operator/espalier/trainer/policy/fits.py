"""Checks that a model fits before it is loaded: the kernel's OOM killer gives no reason.

The planner checks each batch later.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from espalier.api.model.adapter import Adapter
from espalier.trainer.memory.cost_model import FLOAT32_BYTES, TRAINED_BYTES
from espalier.trainer.memory.planner import GIB
from espalier.trainer.policy.lora import adapter_shapes
from espalier.trainer.problems import UserMistakeError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Footprint:
    """Bytes that one rank holds between batches: the loaded base, and training's share on top."""

    base: int
    training: int

    @property
    def total(self) -> int:
        """Base and training together."""
        return self.base + self.training


def footprint(base: Path, adapter: Adapter, dtype: str, ranks: int) -> Footprint:
    """Computes the footprint from the base's configuration and the adapter, without weights."""
    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(base, local_files_only=True)
        )
    weights = sum(parameter.numel() for parameter in causal_lm.parameters())
    if adapter.type == "Full":
        # Every rank loads the whole base; the trained parameters are then sharded.
        return Footprint(
            weights * FLOAT32_BYTES,
            max(0, weights * TRAINED_BYTES // ranks - weights * FLOAT32_BYTES),
        )
    trained = sum(math.prod(shape) for shape in adapter_shapes(base, adapter).values())
    return Footprint(weights * getattr(torch, dtype).itemsize, trained * TRAINED_BYTES)


def check(needed: Footprint, free: int) -> None:
    """Raises UserMistakeError with the memory to request if a rank has too few ``free`` bytes."""
    logger.info("the model needs %.2f of %.2f GiB", needed.total / GIB, free / GIB)
    if needed.total <= free:
        return
    raise UserMistakeError(
        "TooLittleMemory",
        f"the base takes {needed.base / GIB:.2f} GiB and training it {needed.training / GIB:.2f} "
        f"GiB more on every rank, before any batch; {free / GIB:.2f} GiB are free",
        f"set spec.trainer.template.resources to more than {needed.total / GIB:.1f} GiB of memory "
        "for every rank, with room for a batch; or lower spec.adapter.rank, or use bfloat16",
    )
