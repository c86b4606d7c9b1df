"""What a Checkpoint's status says: whether it is true, which heads serve it, and whether training
went on elsewhere.

Ready is taken back when the object contradicts itself, or when trainer or rollouts found that the
bytes are not those of its digest. The latter stays on record until a rollout has loaded them, and
what a scrub found until another finds the bytes right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from espalier.api.checkpoint import Checkpoint, CheckpointStatus
from espalier.api.checkpointhead import CheckpointHead
from espalier.api.meta import Condition
from espalier.api.wire.problem import Problem
from espalier.core import conditions
from espalier.core.checkpoints import scrub_report
from espalier.core.conditions import Finding
from espalier.core.head import head_request
from espalier.core.lineage import measurements
from espalier.core.lineage.integrity import REASONS
from espalier.core.lineage.lineage import Lineage

SHOWN_HEADS = 16
# Reasons unrelated to the bytes; they clear when their cause clears. The last two
# are of a server that was set up for another adapter or base.
PASSING = REASONS | {
    conditions.FORBIDDEN,
    conditions.INVALID,
    conditions.UNKNOWN_FIELD,
    "RankTooHigh",
    "WrongBase",
}
MARK_CHARS = 400


@dataclass(frozen=True)
class Evidence:
    """What reading the bytes showed: why trainer, rollouts or a scrub refused them.

    ``verified``: a rollout has them loaded, and verified them then; ``sound``: a scrub read them.
    """

    refusal: Problem | None = None
    verified: bool = False
    sound: bool = False


UNTOUCHED = Evidence()


def decide(
    checkpoint: Checkpoint,
    heads: Sequence[CheckpointHead],
    lineage: Lineage,
    now: str,
    evidence: Evidence = UNTOUCHED,
) -> CheckpointStatus:
    """The status of a checkpoint; ``heads`` are those of its model and of models forked from it."""
    name = checkpoint.metadata.name
    serving = sorted(
        head.metadata.name
        for head in heads
        if head.status.current is not None and head.status.current.name == name
    )[:SHOWN_HEADS]
    model = checkpoint.spec.model_ref.name
    own = [head for head in heads if head.spec.model_ref.name == model]
    superseded = is_superseded(name, own, lineage)
    findings = [
        *_integrity(checkpoint, lineage, evidence),
        Finding("InUse", "True", "Served", f"served by {', '.join(serving)}")
        if serving
        else Finding("InUse", "False", "NotServed", "no head serves it"),
        Finding(conditions.SUPERSEDED, "True", "TrainingWentElsewhere", superseded)
        if superseded
        else Finding(conditions.SUPERSEDED, "False", "OnTheLiveLine", ""),
    ]
    return CheckpointStatus(
        observed_generation=checkpoint.metadata.generation,
        heads=serving,
        head_mark=f"> {','.join(serving)}"[:MARK_CHARS] if serving else None,
        metrics=measurements.metrics(checkpoint, lineage.tellers(name)),
        evaluations=checkpoint.status.evaluations,
        saves=checkpoint.status.saves,
        conditions=conditions.settle(
            checkpoint.status.conditions, findings, checkpoint.metadata.generation, now
        ),
    )


def _integrity(checkpoint: Checkpoint, lineage: Lineage, evidence: Evidence) -> list[Finding]:
    """Whether the object is intact and its bytes can be loaded."""
    name = checkpoint.metadata.name
    if fault := lineage.faults.get(name):
        return conditions.stalled(fault.reason, fault.message)
    if evidence.refusal is not None:
        return conditions.stalled(evidence.refusal.reason, evidence.refusal.text)
    damage = conditions.true(checkpoint.status.conditions, conditions.STALLED)
    if damage is not None and damage.reason not in PASSING and not _repaired(damage, evidence):
        return conditions.stalled(damage.reason, damage.message)
    return [Finding(conditions.READY, "True", "Committed", "its bytes are on the volume")]


def _repaired(damage: Condition, evidence: Evidence) -> bool:
    """Whether the bytes were found right since: what a rollout holds may be older than the rot."""
    return evidence.sound or (evidence.verified and damage.reason not in scrub_report.REASONS)


def is_superseded(name: str, heads: Sequence[CheckpointHead], lineage: Lineage) -> str:
    """Where training went on instead, as a sentence; empty for one on the live line."""
    leader = next((head for head in heads if head_request.leads(head)), None)
    if leader is None or leader.status.term == 0 or name not in lineage.by_name:
        return ""
    status = leader.status
    base = status.branch_base.name if status.branch_base else ""
    if lineage.on_line(name, status.branch, base):
        return ""
    return f"training goes on at branch {status.branch} from {base or 'the base'}"
