"""How rewards become advantages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from espalier.api.meta import Type


class Advantage(Type):
    """How rewards become advantages."""

    source: Literal["Estimated", "Precomputed"] = Field(
        default="Estimated",
        description="source is Estimated (reward minus the mean of its group) or, with driver "
        "Client alone, Precomputed (its script gives one for each token).",
    )
    scale: Literal["None", "GroupStd"] = Field(
        default="None",
        description="scale is None, or GroupStd to divide by the group's standard deviation.",
    )
