"""Arithmetic with a built-in loss: the whole loop is ``Fit``."""

from __future__ import annotations

from curve import Curve
from sums import SUMS, answer

from espalier import Fit, FitConfig, Sampling, TrainingClient

STEPS = 24


def main() -> None:
    """Trains the model ``tiny``."""
    curve = Curve()
    config = FitConfig(
        steps=STEPS, learning_rate=1e-2, group=8, tasks_per_step=8, sampling=Sampling(max_tokens=1)
    )
    with TrainingClient("tiny") as client:
        Fit(client, SUMS, answer, config, trackers=[curve]).fit()
    curve.end()


if __name__ == "__main__":
    main()
