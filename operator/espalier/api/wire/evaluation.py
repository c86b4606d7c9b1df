"""What an evaluation found."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from espalier.api.wire.base import Real, Whole, Wire


class EvaluationRequest(Wire):
    """What an evaluation found of a checkpoint; metrics by their names after ``eval/<name>/``."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=30)]
    tasks: Whole = Field(ge=1)
    metrics: dict[Annotated[str, Field(pattern=r"^[a-z0-9_@]{1,24}$")], Real] = Field(
        min_length=1, max_length=12
    )
