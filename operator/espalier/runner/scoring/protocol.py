"""What passes between the runner and its worker: JSON, one object a line."""

from __future__ import annotations

import signal
from typing import Any, get_args

from pydantic import Field

from espalier.rewards.failure import Cause, Failure
from espalier.rewards.number import Range
from espalier.runner.scorer_spec import Line, Reference, Spec

MEMORY_BYTES = 512 << 20


class Opening(Line):
    """The first line to a worker.

    ``seconds`` are those of one score, ``memory_bytes`` what a child may take on top of its
    worker, ``children`` how many score at once. A reward is from ``minimum`` to ``maximum``.
    """

    scorer: Spec = Field(discriminator="kind")
    seconds: int
    memory_bytes: int = MEMORY_BYTES
    children: int
    minimum: float = 0.0
    maximum: float = 1.0


class Ready(Line):
    """The worker's first line: what confines its children."""

    landlock: int
    seccomp: bool


class Request(Line):
    """One answer to score."""

    id: int
    reference: Reference
    completion: str


class Answer(Line):
    """What became of a request: exactly one of the two is given."""

    id: int
    reward: float | None = None
    failure: Failure | None = None


def judged(given: Any, allowed: Range) -> float | Failure:
    """What a child answered for one score; it may have been taken over, so nothing is believed."""
    if not isinstance(given, dict) or len(given) != 1:
        return Failure.of("Malformed", "its process answered something else than a score")
    if (reward := given.get("reward")) is not None:
        return allowed.judge(reward)
    cause, detail = next(iter(given.items()))
    if cause not in get_args(Cause) or not isinstance(detail, str):
        return Failure.of("Malformed", "its process answered something else than a score")
    return Failure.of(cause, detail)


def death(code: int) -> Failure:
    """Why a process gave no answer that ended with this code, below 0 by a signal."""
    if code == -signal.SIGXCPU:
        return Failure.of("Timeout", "used up the CPU time of its limit")
    if code < 0:
        return Failure.of("Died", f"its process was ended by {signal.Signals(-code).name}")
    return Failure.of("Died", f"its process ended by itself, with code {code}")
