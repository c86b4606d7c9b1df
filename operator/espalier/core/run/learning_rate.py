"""The learning rate of each step of a run.

As torch's and Transformers' schedules, but for the warm-up's first step, which is not lost to a
rate of 0: ``warmupSteps`` steps rise to the full rate, and what follows starts at it. No step has
the minimum itself, which may be 0: it is where one step more would be.
"""

from __future__ import annotations

import math

from espalier.api.meta import decimal
from espalier.api.trainingrun import TrainingRunSpec
from espalier.api.wire.declared import RateSchedule


def learning_rate_at(spec: TrainingRunSpec, step: int) -> float:
    """The rate of a run's step, counted from 1; ValueError for a run that leaves it open."""
    if spec.learning_rate is None:
        raise ValueError("a run without learningRate has no rate of its own")
    return scheduled(decimal(spec.learning_rate), declared_schedule(spec), step)


def declared_schedule(spec: TrainingRunSpec) -> RateSchedule | None:
    """The schedule of a run with all that its rates depend on; None for one without."""
    given = spec.learning_rate_schedule
    if given is None:
        return None
    return RateSchedule(
        type=given.type,
        warmup_steps=given.warmup_steps,
        minimum=decimal(given.minimum),
        steps=spec.steps,
    )


def scheduled(peak: float, schedule: RateSchedule | None, step: int) -> float:
    """The rate of a step, counted from 1, on the way from ``peak``; past the last step, its."""
    if step < 1:
        raise ValueError(f"steps are counted from 1, not {step}")
    if schedule is None:
        return peak
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    if schedule.type == "Constant":
        return peak
    decaying = schedule.steps - schedule.warmup_steps
    left = max(1, schedule.steps + 1 - step) / decaying
    share = left if schedule.type == "Linear" else math.sin(left * math.pi / 2) ** 2
    return schedule.minimum + (peak - schedule.minimum) * share
