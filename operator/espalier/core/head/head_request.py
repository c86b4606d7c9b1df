"""The request of a head, and what the agreed request means for training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import (
    Agreed,
    CheckpointHead,
    CheckpointHeadSpec,
    NameOnly,
    OnPin,
)
from espalier.api.meta import ObjectRef, decimal
from espalier.core.lineage import measurements
from espalier.core.lineage.lineage import Lineage, Point

TRACK: Final = "Track"
PIN: Final = "Pin"
PAUSE: Final = "Pause"
BRANCH: Final = "Branch"
CONTINUE: Final = "Continue"


def requested(spec: CheckpointHeadSpec, generation: int) -> Agreed:
    """The request of a spec; ``generation`` is that of the edit."""
    if spec.mode == TRACK or spec.checkpoint_ref is None:
        return track(generation)
    return pin(spec.checkpoint_ref.name, spec.on_pin, generation)


def track(generation: int = 0) -> Agreed:
    """A request to follow the newest checkpoint."""
    return Agreed(generation=generation, mode=TRACK)


def pin(name: str, on_pin: OnPin, generation: int = 0) -> Agreed:
    """A request to pin the checkpoint of that name."""
    ref = ObjectRef(name=name)
    return Agreed(generation=generation, mode=PIN, checkpoint_ref=ref, on_pin=on_pin)


@dataclass(frozen=True)
class TrainingPoint:
    """The term, the branch and the start of a model's training."""

    term: int
    branch: str
    base: Point


def leads(head: CheckpointHead) -> bool:
    """Whether training continues from this head: it has its model's name."""
    return head.metadata.name == head.spec.model_ref.name


def paused(head: CheckpointHead) -> bool:
    """Whether a pin holds training."""
    agreed = head.status.agreed
    return agreed is not None and agreed.on_pin == PAUSE


def fence(head: CheckpointHead, branch: str) -> int:
    """The lowest term whose commits may extend the branch.

    While training is paused the commit of the step that was under way still counts: nothing has
    been started from elsewhere yet.
    """
    return head.status.term if head.status.branch == branch and not paused(head) else 0


def training_point(head: CheckpointHead, lineage: Lineage) -> TrainingPoint | None:
    """Where training continues; None while it is paused or not known yet."""
    status = head.status
    if status.term == 0 or paused(head):
        return None
    base = lineage.newest(status.branch, ref_name(status.branch_base))
    return TrainingPoint(status.term, status.branch, base) if base is not None else None


def passes(spec: CheckpointHeadSpec, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint passes the head's gate; without the gate's metric it does not."""
    if spec.gate is None:
        return True
    value = measurements.value(checkpoint, spec.gate.metric)
    return bool(value) and decimal(value) >= decimal(spec.gate.min)


def ref_name(ref: NameOnly | None) -> str:
    """The name referred to; empty without a reference."""
    return ref.name if ref is not None else ""
