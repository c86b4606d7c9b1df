"""What long completions are worth."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import PositiveDecimal, Type, cel


class Overlong(Type):
    """What a completion that reaches sampling.maxTokens is worth."""

    policy: Literal["Keep", "Mask", "Drop", "ZeroReward", "SoftPenalty"] = Field(
        default="Keep",
        description="policy for a completion that was cut at sampling.maxTokens: it earns what an "
        "unfinished answer earns (Keep); its tokens are not trained on, though its reward counts "
        "in the mean of its group (Mask); its whole group is dropped (Drop); it is not scored and "
        "earns 0 (ZeroReward). SoftPenalty adds DAPO's penalty, cut or not: 0 up to maxTokens "
        "minus bufferTokens, from there falling to -1 at maxTokens. "
        "completion/truncated_fraction counts cut completions under every policy.",
    )
    buffer_tokens: int | None = Field(
        default=None,
        ge=1,
        le=131072,
        description="bufferTokens before sampling.maxTokens in which SoftPenalty grows.",
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "(self.policy == 'SoftPenalty') == has(self.bufferTokens)",
                "bufferTokens belongs to policy SoftPenalty, which needs it: set both or neither",
                ".bufferTokens",
            )
        )
    )


class LengthPenalty(Type):
    """A penalty that grows with the tokens beyond a target.

    DAPO's linear penalty, with a target of its own in place of the end of sampling.maxTokens.
    """

    coefficient: PositiveDecimal = Field(
        description="coefficient of the penalty, a quoted decimal: what a completion of twice "
        "targetTokens loses."
    )
    target_tokens: int = Field(
        ge=1,
        le=131072,
        description="targetTokens that cost nothing. A completion of n tokens more loses "
        "coefficient * n / targetTokens.",
    )
