"""The benchmark's variants compute one gradient, or its ratios would compare different work."""

from __future__ import annotations

import pytest
import torch
from bench.trainer import compare
from bench.trainer.variants import NAMES, variants
from bench.trainer.workload import TINY, batch, policy
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm


def test_every_variant_of_the_benchmark_leaves_the_same_gradient_in_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Qwen3RMSNorm, "forward", Qwen3RMSNorm.forward)
    compare._wide_norms()
    ours = policy(TINY, torch.float64, torch.device("cpu"))
    # TRL's own code needs an environment of its own.
    keys = [key for key in NAMES if key != "trl"]
    turns = {}
    for variant in variants(keys, TINY, ours, batch(TINY), 3):
        variant.forget()
        variant.step()
        turns[variant.key] = [compare.Turn(0.0, 0.0, variant.gradients())]
    differences = compare._differences(turns)
    assert set(differences) == set(keys)
    assert max(differences.values()) < compare.GRADIENT_TOLERANCE[torch.float64]
