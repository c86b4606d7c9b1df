"""What answers to held-out tasks say of a checkpoint: means, pass@k, and their spread. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

# Two-sided 95 % of a normal distribution.
Z95 = 1.96
# A reward of at least this is a solved task.
SOLVED = 1.0 - 1e-6


def pass_at_k(samples: int, solved: int, k: int) -> float:
    """Chance that one of ``k`` samples solves the task; unbiased: 1 - C(n-c, k) / C(n, k).

    Source: Chen et al., Evaluating Large Language Models Trained on Code, 2021.

    Raises:
        ValueError: ``k`` is not from 1 to ``samples``.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples of a task, and there are {samples}")
    return 1.0 - math.comb(samples - solved, k) / math.comb(samples, k)


def figures(rewards: Sequence[Sequence[float]], ks: Sequence[int]) -> dict[str, float]:
    """The figures of one evaluation, by their names after ``eval/<name>/``.

    The interval is of the mean over tasks, not over samples: samples of one task are alike.

    Args:
        rewards: of each task's samples; every task has as many.
        ks: of pass@k.
    """
    means = [fmean(of_task) for of_task in rewards]
    mean = fmean(means)
    half = Z95 * stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    found = {
        "mean_reward": mean,
        "mean_reward_low": mean - half,
        "mean_reward_high": mean + half,
    }
    for k in ks:
        solved = [
            pass_at_k(len(of_task), sum(reward >= SOLVED for reward in of_task), k)
            for of_task in rewards
        ]
        found[f"pass@{k}"] = fmean(solved)
    return found
