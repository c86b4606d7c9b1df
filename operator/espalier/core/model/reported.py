"""What a trainer says of itself, as conditions of its model. None of them makes a model unready."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.api.meta import Condition
from espalier.api.wire.problem import Problem
from espalier.core import conditions
from espalier.core.checkpoints.scrub import BYTES_INTACT
from espalier.core.conditions import Finding

FAST_PATH = "FastPath"
VOLUME_HEALTHY = "VolumeHealthy"
# Conditions that are worth an Event when they turn False, and when that is over.
ANNOUNCED = (FAST_PATH, VOLUME_HEALTHY, BYTES_INTACT)
# Reasons of a trainer's warning that say why rows run on the padded path.
PADDED_REASONS = frozenset({"UnknownFamily", "UnknownSetting", "SelfCheckDiffers"})
# Reasons of a trainer's problem that are the volume's fault.
VOLUME_REASONS = frozenset({"VolumeFull", "VolumeReadOnly", "VolumeFailing"})
# A trainer's reason not to go on from where its branch stands: its log is of an earlier time.
VOLUME_BEHIND = "VolumeBehind"


def findings(
    warnings: Sequence[Problem] | None, problem: Problem | None, known: Sequence[Condition]
) -> list[Finding]:
    """FastPath and VolumeHealthy; ``warnings`` are None while no trainer has been heard.

    A base computes on the same path every time it is loaded, so that is remembered from ``known``;
    a volume is as it was only while its trainer says so.
    """
    return [_fast_path(warnings, known), _volume(warnings, problem)]


def _fast_path(warnings: Sequence[Problem] | None, known: Sequence[Condition]) -> Finding:
    if warnings is None:
        condition = conditions.find(known, FAST_PATH)
        if condition is None:
            return Finding(FAST_PATH, "Unknown", "NotLoaded", "no trainer has loaded the base yet")
        return Finding(FAST_PATH, condition.status, condition.reason, condition.message)
    for warning in warnings:
        if warning.reason in PADDED_REASONS:
            return Finding(FAST_PATH, "False", warning.reason, warning.text)
    return Finding(FAST_PATH, "True", "SelfCheckEqual", "the fast path equals the padded one")


def _volume(warnings: Sequence[Problem] | None, problem: Problem | None) -> Finding:
    if problem is not None and problem.reason in VOLUME_REASONS:
        return Finding(VOLUME_HEALTHY, "False", problem.reason, problem.text)
    if warnings is None:
        return Finding(VOLUME_HEALTHY, "Unknown", "NoTrainer", "no trainer writes to the volume")
    return Finding(VOLUME_HEALTHY, "True", "NoFault", "the trainer reports no fault")
