"""Prints the reward of each step, and whether it rose."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from statistics import fmean
from typing import Any


class Curve:
    """A tracker that keeps the rewards."""

    def __init__(self, name: str = "rollout/reward/mean") -> None:
        self._name = name
        self.rewards: list[float] = []

    def start(self, config: Mapping[str, Any]) -> None:
        """Says what is trained."""
        print(f"training {config.get('model', '')}", flush=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line a step."""
        if self._name not in metrics:
            return
        self.rewards.append(metrics[self._name])
        bar = "#" * round(40 * max(0.0, self.rewards[-1]))
        print(f"step {step:3d}  reward {self.rewards[-1]:.3f}  {bar}", flush=True)

    def finish(self) -> None:
        """Nothing is left to do."""

    def end(self) -> None:
        """Compares the first third of the steps with the last; exit code 1 if it did not rise."""
        third = max(1, len(self.rewards) // 3)
        first, last = fmean(self.rewards[:third]), fmean(self.rewards[-third:])
        print(f"reward {first:.3f} -> {last:.3f}")
        if last <= first:
            sys.exit("the reward did not rise")
