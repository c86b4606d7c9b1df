"""How a run corrects for samples of another distribution than the trainer's."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import NonNegativeDecimal, PositiveDecimal, Type, cel

CorrectionMode = Literal["None", "TokenTruncate", "TokenMask", "SequenceTruncate", "SequenceMask"]


class OffPolicyCorrection(Type):
    """A weight per token, from the trainer's over the sampler's probability of it."""

    mode: CorrectionMode = Field(
        default="None",
        description="mode is None, TokenTruncate (multiply a token's loss by its ratio, at most "
        "maxRatio), TokenMask (drop tokens whose ratio is outside minRatio to maxRatio), "
        "SequenceTruncate or SequenceMask (the same with one ratio for a whole sequence, the "
        "geometric mean of its tokens'). With loss.ratioAnchor Trainer the ratio is the trainer's "
        "first over the sampler's probability, with Sampler the current over the sampler's.",
    )
    max_ratio: PositiveDecimal | None = Field(
        default=None, description='maxRatio, a quoted decimal (default "2.0"). Needs a mode.'
    )
    min_ratio: NonNegativeDecimal | None = Field(
        default=None,
        description='minRatio, a quoted decimal (default "0"); TokenMask and SequenceMask only.',
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "!has(self.maxRatio) || self.mode != 'None'",
                "maxRatio needs a mode: choose one such as TokenTruncate, or remove it",
                ".maxRatio",
            ),
            (
                "!has(self.minRatio) || self.mode.endsWith('Mask')",
                "minRatio belongs to TokenMask and SequenceMask: remove it or choose one of them",
                ".minRatio",
            ),
            (
                "!has(self.minRatio)"
                " || double(self.minRatio)"
                " <= (has(self.maxRatio) ? double(self.maxRatio) : 2.0)",
                "minRatio must not be above maxRatio",
                ".minRatio",
            ),
        )
    )
