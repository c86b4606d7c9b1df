"""What the base model bounds requests by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The base model's limits: token ids below ``vocabulary``, at most ``context`` tokens."""

    vocabulary: int
    context: int
