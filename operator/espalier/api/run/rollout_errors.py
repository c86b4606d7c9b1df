"""How many rollouts of a run may come to nothing, and how often one is tried again."""

from __future__ import annotations

from pydantic import Field

from espalier.api.meta import Type


class RolloutErrors(Type):
    """What a run bears of failed rollouts: those that have no reward, or one in place of it."""

    max_retries: int = Field(
        default=3,
        ge=0,
        le=100,
        description="maxRetries is how often one rollout is tried again whose environment failed, "
        "or of which a request for completions took longer than timeouts.sampleSeconds. Rewards "
        "are not asked again: onError says what follows.",
    )
    min_group_size: int | None = Field(
        default=None,
        ge=2,
        le=1024,
        description="minGroupSize is the fewest rollouts that a group is trained on without those "
        "of it that have no reward. If unset, or with fewer left, such a group is dropped.",
    )
    max_error_percent: int = Field(
        default=20,
        ge=0,
        le=100,
        description="maxErrorPercent of the rollouts of one step that may have failed, tries "
        "included; with more, the run ends before the step with ErrorBudgetExceeded.",
    )
    max_errors: int | None = Field(
        default=None,
        ge=0,
        le=2**53,
        description="maxErrors is how many rollouts of the whole run may have failed; with more it "
        "ends with ErrorBudgetExceeded. No bound if unset.",
        json_schema_extra={"format": "int64"},
    )
