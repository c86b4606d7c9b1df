"""What a head asks for, what the operator agreed to, and what that means for training."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHead, CheckpointHeadSpec, NameOnly
from espalier.api.meta import decimal
from espalier.core.lineage import measurements
from espalier.core.lineage.lineage import Lineage, Point

TRACK = "Track"
PIN = "Pin"
PAUSE = "Pause"
BRANCH = "Branch"
CONTINUE = "Continue"


@dataclass(frozen=True)
class Request:
    """What a head's spec asks for; ``generation`` is the edit that asked it."""

    mode: str
    name: str = ""
    on_pin: str = ""
    generation: int = 0

    @classmethod
    def of(cls, spec: CheckpointHeadSpec, generation: int) -> Request:
        """The request of a spec; fields that do not matter in its mode are left out."""
        if spec.mode == TRACK or spec.checkpoint_ref is None:
            return cls(TRACK, generation=generation)
        return cls(PIN, spec.checkpoint_ref.name, spec.on_pin, generation)

    @classmethod
    def parse(cls, cause: str) -> Request | None:
        """The request kept in ``status.termCause``; None before the first."""
        parts = cause.split("/")
        if len(parts) < 2:
            return None
        name, on_pin = (parts[2], parts[3]) if parts[1] == PIN else ("", "")
        return cls(parts[1], name, on_pin, int(parts[0]))

    def text(self) -> str:
        """The form kept in ``status.termCause``."""
        pin = f"/{self.name}/{self.on_pin}" if self.mode == PIN else ""
        return f"{self.generation}/{self.mode}{pin}"

    def asks_same(self, other: Request) -> bool:
        """Whether both ask for the same, whichever edit it came with."""
        return (self.mode, self.name, self.on_pin) == (other.mode, other.name, other.on_pin)


@dataclass(frozen=True)
class TrainingPoint:
    """Under which term, on which branch and from where the model trains."""

    term: int
    branch: str
    base: Point


def leads(head: CheckpointHead) -> bool:
    """Whether training continues from this head: it has its model's name."""
    return head.metadata.name == head.spec.model_ref.name


def paused(head: CheckpointHead) -> bool:
    """Whether a pin holds training."""
    agreed = Request.parse(head.status.term_cause)
    return agreed is not None and agreed.on_pin == PAUSE


def fence(head: CheckpointHead, branch: str) -> int:
    """The lowest term whose commits may extend the branch.

    While training is paused the commit of the step that was under way still counts: nothing has
    been started from elsewhere yet.
    """
    return head.status.term if head.status.branch == branch and not paused(head) else 0


def training_point(head: CheckpointHead, lineage: Lineage) -> TrainingPoint | None:
    """Where training goes on; None while it is paused or not known yet."""
    status = head.status
    if status.term == 0 or paused(head):
        return None
    base = lineage.newest(status.branch, ref_name(status.branch_base))
    return TrainingPoint(status.term, status.branch, base) if base is not None else None


def passes(spec: CheckpointHeadSpec, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint passes the head's gate; one of which it was not measured does not."""
    if spec.gate is None:
        return True
    value = measurements.value(checkpoint, spec.gate.metric)
    return bool(value) and decimal(value) >= decimal(spec.gate.min)


def ref_name(ref: NameOnly | None) -> str:
    """The name referred to; empty without a reference."""
    return ref.name if ref is not None else ""
