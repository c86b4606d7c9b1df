"""A number that something hostile gave, as a reward or a failure by cause. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from espalier.rewards.failure import Failure

# Some scorers sum floats.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Range:
    """The rewards that something may give, both ends among them."""

    minimum: float = 0.0
    maximum: float = 1.0

    def judge(self, given: Any, whose: str = "its reward") -> float | Failure:
        """The number, if it is one and within the range; ``whose`` begins the detail."""
        if isinstance(given, bool) or not isinstance(given, (int, float)):
            return Failure.of("Malformed", f"{whose} is no number, but {_kind(given)}")
        # An integer of JSON may be too large for a float.
        if isinstance(given, float) and not math.isfinite(given):
            return Failure.of("NotFinite", f"{whose} is {given}")
        if not self.minimum - _TOLERANCE <= given <= self.maximum + _TOLERANCE:
            span = f"from {self.minimum:g} to {self.maximum:g}"
            return Failure.of("OutOfRange", f"{whose} is not {span}")
        return float(given)


def _kind(given: Any) -> str:
    names = {bool: "true or false", str: "text", list: "a list", dict: "an object"}
    return "nothing" if given is None else names.get(type(given), "something else")
