"""What scores a completion in the worker: the taskset's own score, texts, or a user's module."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from espalier.rewards.extraction import Extraction
from espalier.rewards.text import How


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


class Text(Line):
    """Compares texts (``rewards.text``); the reference is the expected answer."""

    kind: Literal["Text"] = "Text"
    how: How
    extraction: Extraction
    tolerance: Decimal = Decimal(0)
    pattern: str = ""
    group: int | None = None


class Module(Line):
    """Calls a function of a user's module; the reference is what was asked."""

    kind: Literal["Module"] = "Module"
    source: str
    function: str


class Asked(Line):
    """A task, as a user's function is told of it."""

    id: str
    index: int
    messages: list[dict[str, str]]
    answer: str | None


# The own scores of tasksets; and beside them what a run may declare.
Scoring = Match | Gym | Mix
Spec = Scoring | Text | Module
Reference = str | int | Asked
