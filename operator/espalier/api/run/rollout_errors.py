"""What becomes of rollouts that fail."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import Type, cel


class RolloutErrors(Type):
    """What a failed rollout costs, and how many of them end a run."""

    policy: Literal["Fail", "Retry", "DropRollout", "DropGroup"] = Field(
        default="Retry",
        description="policy for a rollout that failed: the run ends (Fail), the rollout is begun "
        "anew (Retry) and its group dropped once maxRetries are used up, the group is trained on "
        "without it (DropRollout), or the group is dropped (DropGroup).",
    )
    max_retries: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="maxRetries of one rollout under policy Retry; 3 if unset.",
    )
    min_group_size: int | None = Field(
        default=None,
        ge=2,
        le=1024,
        description="minGroupSize that a group keeps under policy DropRollout, or is dropped; 2 if "
        "unset.",
    )
    max_error_percent: int = Field(
        default=20,
        ge=0,
        le=100,
        description="maxErrorPercent of a step's rollouts that may fail for good; with more the "
        "run ends with ErrorBudgetExceeded.",
    )
    max_consecutive_failures: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="maxConsecutiveFailures of steps in which no group was left to train on; then "
        "the run ends with ErrorBudgetExceeded.",
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "self.policy == 'Retry' || !has(self.maxRetries)",
                "maxRetries belongs to policy Retry: remove it or choose that policy",
                ".maxRetries",
            ),
            (
                "self.policy == 'DropRollout' || !has(self.minGroupSize)",
                "minGroupSize belongs to policy DropRollout: remove it or choose that policy",
                ".minGroupSize",
            ),
        )
    )


# Of the spec of a run that has rolloutErrors and groupSize.
MIN_GROUP_RULE = (
    "!has(self.rolloutErrors) || !has(self.rolloutErrors.minGroupSize)"
    " || self.rolloutErrors.minGroupSize <= (has(self.groupSize) ? self.groupSize : 8)",
    "rolloutErrors.minGroupSize must not be above groupSize: lower it",
    ".rolloutErrors.minGroupSize",
)
