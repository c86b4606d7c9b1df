"""The tracker of a terminal: a line a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espalier.api.metric_names import STEP_REWARD

_SHOWN = (STEP_REWARD, "loss:sum", "val/reward/mean", "group/excluded", "group/dropped")


class Console:
    """Prints a line a step."""

    def start(self, config: Mapping[str, Any]) -> None:
        """Says nothing."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step, reward and loss."""
        shown = [f"{name} {value:.3f}" for name, value in metrics.items() if name in _SHOWN]
        print(f"step {step:4d}  " + "  ".join(shown), flush=True)

    def finish(self) -> None:
        """Says nothing."""
