"""What is left of a batch of several optimizer steps."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from espalier.api.wire.base import Real, Whole, Wire
from espalier.api.wire.trajectory import TrajectoryPayload


class BatchLeft(Wire):
    """What is left of a batch of several optimizer steps, for the steps after one of them.

    ``parts`` are those of the epoch under way, in their order; ``order`` draws those of the next
    one, of ``epochs``. ``next`` counts the steps, from 0: it is the place of the one to take.
    ``taken`` are those that were taken: one without a gradient is left out. A part that no step
    needs any more is empty. ``metrics`` are of the batch's samples.
    """

    parts: Annotated[list[list[TrajectoryPayload]], Field(fail_fast=True, min_length=1)]
    epochs: Whole = Field(ge=1)
    next: Whole = Field(ge=0)
    order: str = ""
    taken: Whole = Field(default=0, ge=0)
    metrics: dict[str, Real] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_there(self) -> BatchLeft:
        if self.next >= len(self.parts) * self.epochs:
            raise ValueError(f"next is {self.next}, and nothing is left")
        last_epoch = self.next >= len(self.parts) * (self.epochs - 1)
        needed = self.parts[self.next % len(self.parts) :] if last_epoch else self.parts
        if not all(needed):
            raise ValueError("parts holds an empty one that a step is yet to take")
        return self


class Held(Wire):
    """What is left of the batch that the trainer's latest step came from, if anything is."""

    batch: BatchLeft | None = None
