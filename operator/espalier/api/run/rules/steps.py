"""Rules of the steps and their learning rate."""

from __future__ import annotations

from espalier.api.meta import Rule

STEPS: tuple[Rule, ...] = (
    (
        "self.steps >= oldSelf.steps",
        "steps may grow but never shrink: suspend the run to stop it early",
        ".steps",
    ),
    (
        "!has(self.learningRateSchedule) || has(self.learningRate)",
        "learningRateSchedule needs learningRate, which it starts from: give a quoted "
        'decimal, such as "1e-5"',
        ".learningRateSchedule",
    ),
    (
        "!has(self.learningRateSchedule) || self.learningRateSchedule.warmupSteps < self.steps",
        "learningRateSchedule.warmupSteps must be below steps, or no step takes "
        "learningRate: lower it or raise steps",
        ".learningRateSchedule.warmupSteps",
    ),
    (
        "!has(self.learningRateSchedule) || !has(self.learningRate)"
        " || double(self.learningRateSchedule.minimum) <= double(self.learningRate)",
        "learningRateSchedule.minimum must not be above learningRate: lower it",
        ".learningRateSchedule.minimum",
    ),
)
