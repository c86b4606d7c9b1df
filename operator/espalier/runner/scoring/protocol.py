"""What passes between the runner and its worker: JSON, one object a line."""

from __future__ import annotations

import math
from typing import Any, get_args

from pydantic import Field

from espalier.runner.scorer_spec import Cause, Failure, Line, Scoring

MEMORY_BYTES = 512 << 20
_TOLERANCE = 1e-6


class Opening(Line):
    """The first line to a worker.

    ``seconds`` are those of one score, ``memory_bytes`` what a child may take on top of its
    worker, ``children`` how many score at once.
    """

    scorer: Scoring = Field(discriminator="kind")
    seconds: int
    memory_bytes: int = MEMORY_BYTES
    children: int


class Ready(Line):
    """The worker's first line: what confines its children."""

    landlock: int
    seccomp: bool


class Request(Line):
    """One answer to score."""

    id: int
    reference: str | int
    completion: str


class Answer(Line):
    """What became of a request: exactly one of the two is given."""

    id: int
    reward: float | None = None
    failure: Failure | None = None


def judged(given: Any) -> float | Failure:
    """What a child answered for one score; it may have been taken over, so nothing is believed."""
    if not isinstance(given, dict) or len(given) != 1:
        return Failure.of("Malformed", "its process answered something else than a score")
    if (reward := given.get("reward")) is not None:
        return _reward(reward)
    cause, detail = next(iter(given.items()))
    if cause not in get_args(Cause) or not isinstance(detail, str):
        return Failure.of("Malformed", "its process answered something else than a score")
    return Failure.of(cause, detail)


def _reward(given: Any) -> float | Failure:
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        return Failure.of("Malformed", "its reward is no number")
    # An integer of JSON may be too large for a float.
    if isinstance(given, float) and not math.isfinite(given):
        return Failure.of("NotFinite", f"its reward is {given}")
    if not -_TOLERANCE <= given <= 1 + _TOLERANCE:
        return Failure.of("OutOfRange", "its reward is not from 0 to 1")
    return float(given)
