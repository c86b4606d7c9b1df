"""Which rollouts a step keeps beside its checkpoint."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from espalier.api.meta import Type

PATTERN_CHARS = 256


class RolloutLog(Type):
    """What of the rollouts of driver Runner is kept to be read."""

    groups_per_step: int = Field(
        default=4,
        ge=1,
        le=64,
        description="groupsPerStep is how many groups of a step are kept whole, drawn by the "
        "number of the step.",
    )
    every_steps: int = Field(
        default=1,
        ge=1,
        le=100000,
        description="everySteps keeps those of each n-th step; the others keep none.",
    )
    include_tokens: Literal["Never", "Sampled"] = Field(
        default="Never",
        description="includeTokens is Sampled to keep the sampled tokens, their texts and the "
        "sampler's log-probs as well, at most 4096 tokens of a completion.",
    )
    redact_patterns: list[Annotated[str, Field(min_length=1, max_length=PATTERN_CHARS)]] | None = (
        Field(
            default=None,
            description="redactPatterns are regular expressions of Python; what they match in "
            "prompts and completions is kept as [redacted], and no tokens of such a rollout are. "
            "What is trained on stays as it was.",
            min_length=1,
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        )
    )
