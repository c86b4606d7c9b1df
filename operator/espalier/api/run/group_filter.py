"""Which groups of rollouts are trained on."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import DECIMAL_PATTERN, Type, cel, decimal, explained

RESAMPLE_ROUNDS = 3


class GroupFilter(Type):
    """What happens to groups that cannot teach."""

    zero_variance: Literal["Keep", "Drop", "Resample"] = Field(
        default="Drop",
        description="zeroVariance says whether groups of equal rewards are kept, dropped, or "
        "replaced by groups of further tasks (Resample); they are counted either way.",
    )
    max_resample_rounds: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="maxResampleRounds bounds how often groups are replaced for one step under "
        "Resample; 3 if unset. Then the step is taken with the groups that there are.",
    )
    min_groups: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="minGroups is the fewest groups that a step is taken with; with fewer, "
        "further tasks are asked, up to 20 rounds.",
    )
    tolerance: str = Field(
        default="1e-6",
        pattern=DECIMAL_PATTERN,
        max_length=32,
        description="tolerance is how far the rewards of a group may be apart and still be equal, "
        'a quoted decimal of "1e-6" or more, in units of the reward. Of rewards under '
        "NormalizeThenSum it is of the advantages.",
        json_schema_extra=explained(
            DECIMAL_PATTERN,
            'must be a quoted decimal of "1e-6" or more, such as "0.01": closer rewards have no '
            "advantage that a step could be taken with",
            "double(self) >= 0.000001",
        ),
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "!has(self.maxResampleRounds) || (has(self.zeroVariance) && "
                "self.zeroVariance == 'Resample')",
                "maxResampleRounds belongs to zeroVariance Resample: remove it or set that",
                ".maxResampleRounds",
            ),
        )
    )

    @property
    def equal_within(self) -> float:
        """How far equal rewards may be apart."""
        return decimal(self.tolerance)

    def resamples(self, rounds: int) -> bool:
        """Whether a step that was sampled for so many rounds waits for more groups that teach."""
        most = self.max_resample_rounds or RESAMPLE_ROUNDS
        return self.zero_variance == "Resample" and 1 <= rounds <= most
