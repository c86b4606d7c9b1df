"""Which groups of rollouts are trained on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from espalier.api.meta import Type


class GroupFilter(Type):
    """What happens to groups that cannot teach."""

    zero_variance: Literal["Keep", "Drop"] = Field(
        default="Drop",
        description="zeroVariance says whether groups of equal rewards are kept or dropped; "
        "they are counted either way.",
    )
