"""The base of the wire types, and the strict values in them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict


class Wire(BaseModel):
    """Base of the wire types: frozen, snake_case, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# A boolean or a text is no number here; the first wrong element of a list ends its reading, so
# that refusing a large body costs no more than reading it.
Whole = Annotated[int, Strict()]
Real = Annotated[float, Strict()]
Wholes = Annotated[list[Whole], Field(fail_fast=True)]
Reals = Annotated[list[Real], Field(fail_fast=True)]


def _strict_json(value: Any) -> Any:
    """What JSON cannot say is refused here, where its place is known, and not when it is stored."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not a finite number")
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for place, child in children:
        try:
            _strict_json(child)
        except ValueError as error:
            raise ValueError(f"at {place}: {error}") from None
    return value


# A client's own JSON object, kept as it is.
Document = Annotated[dict[str, Any], AfterValidator(_strict_json)]
