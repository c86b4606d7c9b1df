"""Conditions in the manner of the Kubernetes API conventions and kstatus.

``Reconciling`` is True only while the world differs from the spec, ``Stalled`` only for what needs
a person or an edit (https://github.com/kubernetes-sigs/cli-utils/tree/master/pkg/kstatus).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from espalier.api.meta import Condition

READY = "Ready"
RECONCILING = "Reconciling"
STALLED = "Stalled"
SUPERSEDED = "Superseded"
# Of a TrainableModel.
SOURCE_RESOLVED = "SourceResolved"
TRAINER_READY = "TrainerReady"
ROLLOUTS_READY = "RolloutsReady"

# Reasons that an object of any kind may have.
FORBIDDEN = "Forbidden"
INVALID = "Invalid"
# An object of somebody else has the name of one that is to be made.
NAME_TAKEN = "NameTaken"
UNKNOWN_FIELD = "UnknownField"
# Pods wait for quota in a queue of Kueue; their queue is not there, or is stopped.
QUEUED = "Queued"
QUEUE_UNAVAILABLE = "QueueUnavailable"
IN_QUEUE = (QUEUED, QUEUE_UNAVAILABLE)

# Reasons of a normal transition. While Ready is not True, a person should look at any other reason;
# most of those are Kubernetes' own words.
UNDER_WAY = frozenset(
    {
        "CheckpointNotReady",
        "Importing",
        "ModelBusy",
        "Moving",
        QUEUED,
        "Resolving",
        "Restarting",
        "RolloutsNotReady",
        "SourceNotResolved",
        "Starting",
    }
)

TruthValue = Literal["True", "False", "Unknown"]
MESSAGE_CHARS = 4096
REASON_CHARS = 128


@dataclass(frozen=True)
class Finding:
    """What a condition should say; generation and transition time are added by ``settle``."""

    type: str
    status: TruthValue
    reason: str
    message: str = ""


def ready(reason: str, message: str) -> list[Finding]:
    """The world matches the spec."""
    return [
        Finding(READY, "True", reason, message),
        Finding(RECONCILING, "False", reason),
        Finding(STALLED, "False", reason),
    ]


def reconciling(reason: str, message: str, status: TruthValue = "False") -> list[Finding]:
    """The world does not match the spec yet; ``status`` is that of Ready (Unknown when queued)."""
    return [
        Finding(READY, "Unknown" if reason == QUEUED else status, reason, message),
        Finding(RECONCILING, "True", reason, message),
        Finding(STALLED, "False", reason),
    ]


def in_queue(findings: Sequence[Finding]) -> bool:
    """Whether Ready, the first of these, says that pods wait for a quota."""
    return findings[0].reason in IN_QUEUE


def stalled(reason: str, message: str) -> list[Finding]:
    """Nothing moves until a person edits something."""
    return [
        Finding(READY, "False", reason, message),
        Finding(RECONCILING, "False", reason),
        Finding(STALLED, "True", reason, message),
    ]


def settle(
    existing: Sequence[Condition], findings: Iterable[Finding], generation: int, now: str
) -> list[Condition]:
    """The complete list of conditions; ``now`` (RFC 3339) is used only where a status changed."""
    before = {condition.type: condition for condition in existing}
    settled = []
    for finding in findings:
        old = before.get(finding.type)
        if old is not None and _says(old, finding, generation):
            settled.append(old)
            continue
        unchanged = old is not None and old.status == finding.status
        settled.append(
            Condition(
                type=finding.type,
                status=finding.status,
                observed_generation=generation,
                last_transition_time=old.last_transition_time if old and unchanged else now,
                reason=finding.reason[:REASON_CHARS],
                message=finding.message[:MESSAGE_CHARS],
            )
        )
    return settled


def _says(condition: Condition, finding: Finding, generation: int) -> bool:
    """Whether the condition is unchanged, as most are at every pass."""
    return (
        condition.status == finding.status
        and condition.observed_generation == generation
        and condition.reason == finding.reason[:REASON_CHARS]
        and condition.message == finding.message[:MESSAGE_CHARS]
    )


def is_trouble(reason: str) -> bool:
    """Whether the reason of a Ready that is not True is more than a normal transition."""
    return reason not in UNDER_WAY


def find(conditions: Sequence[Condition], type_: str) -> Condition | None:
    """The condition of a type, if it is set."""
    return next((condition for condition in conditions if condition.type == type_), None)


def true(conditions: Sequence[Condition], type_: str) -> Condition | None:
    """The condition of a type, if it is True."""
    condition = find(conditions, type_)
    return condition if condition is not None and condition.status == "True" else None


def is_true(conditions: Sequence[Condition], type_: str) -> bool:
    """Whether the condition is set and True."""
    return true(conditions, type_) is not None
