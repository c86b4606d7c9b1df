"""The number that a resource.Quantity of Kubernetes stands for."""

from __future__ import annotations

import re

_QUANTITY = re.compile(r"(\d+\.?\d*|\.\d+)(?:([numkMGTPE]|[KMGTPE]i)|[eE]([-+]?\d{1,2}))?")
_FACTORS = {
    **{"n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3},
    **{letter: 1e3**power for power, letter in enumerate("MGTPE", 2)},
    **{f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", 1)},
}


def number(text: str) -> float:
    """``"500m"`` is 0.5, ``"1Gi"`` 2**30, ``"1e3"`` 1000; ValueError for any other text."""
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a quantity")
    digits, suffix, exponent = found.groups()
    return float(digits) * (10.0 ** int(exponent) if exponent else _FACTORS.get(suffix, 1.0))
