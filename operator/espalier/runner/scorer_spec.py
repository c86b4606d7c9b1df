"""What scores a completion, as a taskset asks for it, and why a score could not be had."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from espalier.environments.errors import Cause
from espalier.runner.extraction import Extraction

__all__ = ["Cause", "Failure", "Gym", "Line", "Match", "Mix", "Scoring"]

_DETAIL_CHARACTERS = 200


class Line(BaseModel):
    """What travels as one line of JSON; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Match(Line):
    """Compares the extracted answer with the reference, which is the expected one."""

    kind: Literal["Match"] = "Match"
    extraction: Extraction


class Gym(Line):
    """Asks a dataset of reasoning-gym; the reference is the task's index."""

    kind: Literal["ReasoningGym"] = "ReasoningGym"
    dataset: str
    config: dict[str, Any]
    seed: int
    size: int
    extraction: Extraction


class Mix(Line):
    """Several datasets; the reference is ``part:index``, the parts numbered from 0."""

    kind: Literal["Mix"] = "Mix"
    parts: tuple[Gym, ...]


Scoring = Match | Gym | Mix


class Failure(Line):
    """No score, and why. ``detail`` may be the words of what was scored: bounded, printable."""

    cause: Cause
    detail: str

    @classmethod
    def of(cls, cause: Cause, detail: str) -> Failure:
        """With a detail that is fit for a log."""
        shown = "".join(c if c.isprintable() else " " for c in detail[: _DETAIL_CHARACTERS + 1])
        if len(shown) > _DETAIL_CHARACTERS:
            shown = shown[: _DETAIL_CHARACTERS - 1] + "…"
        return cls(cause=cause, detail=shown.strip())
