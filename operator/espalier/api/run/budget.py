"""How much a run may use."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from espalier.api.meta import Type, cel

MOST = 2**53
_WIDE: dict[str, Any] = {"format": "int64"}


class Budget(Type):
    """The most that a run may use; at any of them it ends with BudgetExhausted until raised."""

    max_sampled_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MOST,
        description="maxSampledTokens of all completions, as status.usage counts them.",
        json_schema_extra=_WIDE,
    )
    max_trained_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MOST,
        description="maxTrainedTokens that losses ran over, as status.usage counts them.",
        json_schema_extra=_WIDE,
    )
    max_gpu_seconds: int | None = Field(
        default=None,
        ge=1,
        le=MOST,
        description="maxGpuSeconds of one GPU, as status.usage counts them: two GPUs use it up "
        "twice as fast.",
        json_schema_extra=_WIDE,
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "has(self.maxSampledTokens) || has(self.maxTrainedTokens)"
                " || has(self.maxGpuSeconds)",
                "budget limits nothing: give maxSampledTokens, maxTrainedTokens or maxGpuSeconds, "
                "or remove it",
            )
        )
    )
