from __future__ import annotations

import pytest
from tests.core.objects import LATER, NOW

from espalier.core import conditions
from espalier.core.conditions import Finding


def triple(found: list[Finding]) -> tuple[str, str, str]:
    by_type = {f.type: f.status for f in found}
    return by_type["Ready"], by_type["Reconciling"], by_type["Stalled"]


def test_the_transition_time_changes_with_the_status_alone() -> None:
    first = conditions.settle([], [Finding("Ready", "False", "Starting")], 1, NOW)
    same = conditions.settle(first, [Finding("Ready", "False", "Restarting", "now")], 2, LATER)
    assert same[0].last_transition_time == NOW
    assert (same[0].reason, same[0].message, same[0].observed_generation) == (
        "Restarting",
        "now",
        2,
    )
    turned = conditions.settle(same, [Finding("Ready", "True", "Training")], 2, LATER)
    assert turned[0].last_transition_time == LATER


def test_a_condition_that_is_not_found_any_more_goes() -> None:
    first = conditions.settle(
        [], [Finding("Ready", "True", "A"), Finding("Pinned", "True", "B")], 1, NOW
    )
    left = conditions.settle(first, [Finding("Ready", "True", "A")], 1, LATER)
    assert [condition.type for condition in left] == ["Ready"]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (conditions.ready("Training", ""), ("True", "False", "False")),
        (conditions.reconciling("Starting", ""), ("False", "True", "False")),
        (conditions.reconciling("ModelBusy", "", "Unknown"), ("Unknown", "True", "False")),
        (conditions.stalled("WrongModel", ""), ("False", "False", "True")),
    ],
)
def test_kstatus_reads_each_situation_as_intended(
    found: list[Finding], expected: tuple[str, str, str]
) -> None:
    assert triple(found) == expected


def test_a_long_message_is_cut_to_what_the_api_takes() -> None:
    found = [Finding("Ready", "False", "R" * 500, "x" * 9000)]
    settled = conditions.settle([], found, 1, NOW)
    assert (len(settled[0].reason), len(settled[0].message)) == (128, 4096)
