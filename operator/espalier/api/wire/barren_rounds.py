"""Rounds of sampling that brought no step, as a runner tells of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from espalier.api.wire.base import Whole, Wire

MESSAGE_CHARS = 2048


class BarrenRounds(Wire):
    """``rounds`` of sampling for ``step`` of the run, of which no group teaches, and why."""

    step: Whole = Field(ge=1)
    rounds: Whole = Field(ge=1)
    reason: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z]{0,63}$")]
    message: Annotated[str, Field(min_length=1, max_length=MESSAGE_CHARS)]
