"""The names of metrics: what a step was taken with, and what was measured of a checkpoint.

A step samples the checkpoint that it starts from, so the rewards of its samples are not a figure of
the checkpoint that it makes. They bear two names: ``rollout/reward/mean`` of the step, on the
checkpoint that it made, and ``reward/mean`` on the checkpoint that was sampled, once it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

# Figures of the checkpoint that bears them: heads, rules and rankings read no others.
REWARD = "reward/mean"
MEASURED = ("reward/", "eval/")
# In front of what would be one of them if it were not of a step's samples.
SAMPLED = "rollout/"
STEP_REWARD = f"{SAMPLED}{REWARD}"
# As many as a status has room for beside the step's.
MEASURED_MOST = 32
# Of as many checkpoints a step may bring figures: that of its own start, and a few stale ones.
MEASURED_CHECKPOINTS = 16
# What a run's usage counts, of each step: completions sampled for it, and what its loss ran over.
TOKENS_SAMPLED = "completion/tokens_total"
TOKENS_TRAINED = "tokens/trained"
# Which of a batch's several optimizer steps a step is.
MINIBATCH, EPOCH = "batch/minibatch", "batch/epoch"
# How many steps of the batch came before: the policy has moved since it was sampled.
BATCH_AGE = "batch/steps_before"
MEASURED_RULE = "self.startsWith('reward/') || self.startsWith('eval/')"
MEASURED_MESSAGE = (
    "must be measured of a checkpoint: reward/..., such as reward/mean, or eval/...; any other, "
    "such as rollout/reward/mean, is of the step that made it"
)


def is_measured(name: str) -> bool:
    """Whether a metric of that name is of the checkpoint that bears it, not of its step."""
    return name.startswith(MEASURED)


def of_step(name: str) -> str:
    """The name of a metric as one of a step."""
    return f"{SAMPLED}{name}" if is_measured(name) else name


def of_rewards(rewards: Sequence[float]) -> dict[str, float]:
    """What one or more rewards say of the checkpoint that their samples were drawn from."""
    return {
        REWARD: fmean(rewards),
        "reward/std": pstdev(rewards),
        "reward/min": min(rewards),
        "reward/max": max(rewards),
    }
