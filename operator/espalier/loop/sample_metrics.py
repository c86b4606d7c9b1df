"""What a step's samples say beside their mean reward, for the runner and for a Fit. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from espalier.api.metric_names import TOKENS_SAMPLED
from espalier.client.completion import Completion
from espalier.core.advantages import NO_SPREAD

# What an answer earns that is right, or wrong; beyond it is the same.
PASS, FAIL = 1.0, 0.0
# Rewards closer than this are equal: some scorers sum floats.
TOLERANCE = NO_SPREAD


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


def of_rollouts(rollouts: Sequence[Sequence[Completion]]) -> dict[str, float]:
    """Lengths of rollouts, each of one or more turns, and of all their completions."""
    turns = [turn for rollout in rollouts for turn in rollout]
    if not turns:
        return {}
    lengths = [sum(len(turn.token_ids) for turn in rollout) for rollout in rollouts if rollout]
    return _of_lengths(lengths) | {
        "completion/tokens_mean": fmean(len(turn.token_ids) for turn in turns),
        TOKENS_SAMPLED: float(sum(lengths)),
        "completion/truncated_fraction": fmean(turn.truncated for turn in turns),
    }


def _of_lengths(lengths: Sequence[int]) -> dict[str, float]:
    """Sampled tokens of a rollout, all its turns together."""
    return {
        "rollout/response_tokens/mean": fmean(lengths),
        "rollout/response_tokens/max": float(max(lengths)),
    }
