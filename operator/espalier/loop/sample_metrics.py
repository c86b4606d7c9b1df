"""What a step's samples say beside their mean reward, for the runner and for a Fit. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

# What an answer earns that is right, or wrong; beyond it is the same.
PASS, FAIL = 1.0, 0.0
# Rewards closer than this are equal: some scorers sum floats.
TOLERANCE = 1e-6


def of_groups(groups: Sequence[Sequence[float]]) -> dict[str, float]:
    """Shares of groups that teach nothing, by why; of groups whose rewards are all known."""
    if not groups:
        return {}
    return {
        "group/all_pass_fraction": fmean(min(g) >= PASS - TOLERANCE for g in groups),
        "group/all_fail_fraction": fmean(max(g) <= FAIL + TOLERANCE for g in groups),
    }


def zero_variance(groups: Sequence[Sequence[float]]) -> dict[str, float]:
    """The share of groups whose rewards are all equal."""
    if not groups:
        return {}
    equal = [max(group) - min(group) <= TOLERANCE for group in groups]
    return {"group/zero_variance_fraction": fmean(equal)}


def of_lengths(lengths: Sequence[int]) -> dict[str, float]:
    """Sampled tokens of a rollout, all its turns together."""
    if not lengths:
        return {}
    return {
        "rollout/response_tokens/mean": fmean(lengths),
        "rollout/response_tokens/max": float(max(lengths)),
    }
