"""Metrics: what each is, and that the documents name exactly those of the registry."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.trainer import tiny

from espalier.api.wire.gradients import ForwardRequest
from espalier.trainer.batch.data import datums
from espalier.trainer.batch.losses import loss_spec
from espalier.trainer.batch.packing import pack
from espalier.trainer.batch.step_metrics import (
    GRADIENT_NORM,
    LEARNING_RATE,
    METRICS,
    answer_metrics,
    checkpoint_metrics,
)
from espalier.trainer.batch.tally import Tally
from espalier.trainer.policy.policy import Policy

DOCS = Path(__file__).parents[2] / "docs"


def test_the_reference_lists_the_registry() -> None:
    text = (DOCS / "reference" / "metrics.md").read_text().replace("\\|", "|")
    listed = set(re.findall(r"^\| `(\S+)` \| (.*?) \| (.*) \|$", text, flags=re.MULTILINE))
    registry = {(m.checkpoint, f"`{m.answer}`" if m.answer else "", m.meaning) for m in METRICS}
    of_steps = {(name, "", meaning) for name, meaning in (GRADIENT_NORM, LEARNING_RATE)}
    assert registry | of_steps <= listed


def test_every_metric_is_what_it_says(policy: Policy) -> None:
    policy.row_tokens, before = 20, policy.row_tokens
    try:
        data = datums(
            ForwardRequest(inputs=tiny.trajectories()), policy.limits, policies_compared=True
        )
        config = {"clip_low_threshold": 0.5, "clip_high_threshold": 2.0}
        tally = tiny.add_loss(policy, data, loss_spec("cispo", config), 0.7, None)
        rows = pack(tiny.at(0.7, data), policy.row_tokens)
        with torch.no_grad():
            entropy = torch.cat([policy.evaluate(row).entropy for row in rows]).mean()
        lp = np.concatenate(tiny.score(policy, data, 0.7))
    finally:
        policy.row_tokens = before
        policy.drop_gradients()
    d = lp - np.concatenate([datum.sampling_logprobs for datum in data])
    ratio = np.exp(d)
    rewards = [t.reward for t in tiny.trajectories()]
    expected = {
        "loss/sum": tally.loss,
        "tokens/trained": len(d),
        "tokens/unique": sum(len(row.tokens) for row in rows),
        "tokens/zero_gradient_fraction": 0.0,
        "policy/entropy": float(entropy),
        "policy/ratio_mean": ratio.mean(),
        "policy/ratio_max": ratio.max(),
        "policy/clipped_fraction": ((ratio < 0.5) | (ratio > 2)).mean(),
        "policy/clipped_fraction_low": (ratio < 0.5).mean(),
        "policy/clipped_fraction_high": (ratio > 2).mean(),
        "logprob/difference_mean": np.abs(d).mean(),
        "logprob/difference_max": np.abs(d).max(),
        "logprob/temperature_assumed_fraction": 1.0,
        "policy/mismatch_kl": (ratio - 1 - d).mean(),
        "policy/mismatch_kl_k1": (-d).mean(),
        "rollout/reward/mean": np.mean(rewards),
        "rollout/reward/std": np.std(rewards),
        "rollout/reward/min": min(rewards),
        "rollout/reward/max": max(rewards),
        "trajectories/trained": len(rewards),
        "datums/trained": len(data),
    }
    assert checkpoint_metrics(tally) == pytest.approx(expected, rel=1e-4)
    known = [m for m in METRICS if m.answer and m.checkpoint in expected]
    answered = {m.answer: expected[m.checkpoint] for m in known}
    assert answer_metrics(tally) == pytest.approx(answered, rel=1e-4)


def test_without_a_sampler_nothing_is_compared() -> None:
    known = answer_metrics(Tally(tokens=3, entropy_sum=6.0))
    assert known["entropy:mean"] == 2.0
    assert not any("kl" in name or "ratio" in name or "clipped" in name for name in known)
