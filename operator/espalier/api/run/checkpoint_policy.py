"""Which checkpoints of a run are kept."""

from __future__ import annotations

from pydantic import Field

from espalier.api.meta import MeasuredMetric, Type


class KeepBest(Type):
    """The checkpoints with the highest values of a metric."""

    metric: MeasuredMetric = Field(
        description="metric that is measured of a Checkpoint itself, reward/... or eval/...; the "
        "highest values are the best. Those that are not measured yet stay as well.",
    )
    count: int = Field(ge=1, le=1000, description="count of the checkpoints to keep.")


class CheckpointPolicy(Type):
    """Which checkpoints of a run are kept; what no rule keeps and nothing needs is deleted."""

    keep_last: int | None = Field(
        default=None, ge=1, le=100000, description="keepLast keeps this many of the newest."
    )
    keep_every_steps: int | None = Field(
        default=None,
        ge=1,
        le=10000000,
        description="keepEverySteps keeps those whose step is a multiple of it.",
    )
    keep_best: KeepBest | None = Field(
        default=None, description="keepBest keeps those with the highest values of a metric."
    )
