"""What a trainer says of itself, as conditions."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter
from tests.core.objects import condition

from espalier.api.meta import Condition
from espalier.api.wire.problem import Problem
from espalier.core.model import reported

CONDITION = TypeAdapter(Condition)
PADDED = Problem(detail="unlike", reason="SelfCheckDiffers", remedy="report it")
FULL = Problem(detail="no space left", reason="VolumeFull", remedy="enlarge the claim")
PADDED_BEFORE = ("FastPath", "False", "UnknownFamily")
FULL_BEFORE = ("VolumeHealthy", "False", "VolumeFull")
OTHER = Problem(detail="not finite", reason="NonFiniteGradient")


@pytest.mark.parametrize(
    ("warnings", "problem", "known", "fast", "volume"),
    [
        (None, None, [], "Unknown/NotLoaded", "Unknown/NoTrainer"),
        ([], None, [], "True/SelfCheckEqual", "True/NoFault"),
        ([PADDED], None, [], "False/SelfCheckDiffers", "True/NoFault"),
        ([], FULL, [], "True/SelfCheckEqual", "False/VolumeFull"),
        ([], OTHER, [], "True/SelfCheckEqual", "True/NoFault"),
        (
            None,
            None,
            [("FastPath", "False", "UnknownFamily")],
            "False/UnknownFamily",
            "Unknown/NoTrainer",
        ),
        ([], None, [("FastPath", "False", "UnknownFamily")], "True/SelfCheckEqual", "True/NoFault"),
        (
            None,
            None,
            [("VolumeHealthy", "False", "VolumeFull")],
            "Unknown/NotLoaded",
            "Unknown/NoTrainer",
        ),
    ],
)
def test_a_trainers_words_become_conditions(
    warnings: list[Problem] | None,
    problem: Problem | None,
    known: list[tuple[Any, Any, str]],
    fast: str,
    volume: str,
) -> None:
    before = [CONDITION.validate_python(condition(*said)) for said in known]
    found = reported.findings(warnings, problem, before)
    assert [f.type for f in found] == ["FastPath", "VolumeHealthy"]
    assert [f"{f.status}/{f.reason}" for f in found] == [fast, volume]


def test_the_message_names_the_remedy() -> None:
    _, volume = reported.findings([], FULL, [])
    assert volume.message == "no space left. enlarge the claim"
