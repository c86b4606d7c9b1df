"""Why a reward could not be had."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

# Raised: what scores did, or its service answered with an error. Timeout: it took longer than it
# may. Memory: it wanted more than its limit. Died: its process ended. NotFinite, OutOfRange: it
# gave no number of its range. Malformed: it answered something else. Unreachable: nobody answered.
Cause = Literal[
    "Raised",
    "Timeout",
    "Memory",
    "Died",
    "NotFinite",
    "OutOfRange",
    "Malformed",
    "Unreachable",
]

_DETAIL_CHARACTERS = 200


class Failure(BaseModel):
    """No reward, and why. ``detail`` may be the words of what was scored: bounded, printable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cause: Cause
    detail: str

    @classmethod
    def of(cls, cause: Cause, detail: str) -> Failure:
        """With a detail that is fit for a log."""
        shown = "".join(c if c.isprintable() else " " for c in detail[: _DETAIL_CHARACTERS + 1])
        if len(shown) > _DETAIL_CHARACTERS:
            shown = shown[: _DETAIL_CHARACTERS - 1] + "…"
        return cls(cause=cause, detail=shown.strip())


class RewardFailedError(Exception):
    """A reward could not be had, and its onError says Fail."""

    def __init__(self, task: str, where: str, failure: Failure, remedy: str) -> None:
        self.detail = f"task {task}{where}: {failure.cause}: {failure.detail}"
        self.remedy = remedy
        super().__init__(self.detail)
