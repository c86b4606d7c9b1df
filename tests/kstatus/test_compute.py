"""The port decides as the original does, in its order."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.objects import condition
from tests.kstatus.compute import CURRENT, FAILED, IN_PROGRESS, TERMINATING, compute

READY, NOT_READY = condition("Ready", "True"), condition("Ready", "False")
RECONCILING, STALLED = condition("Reconciling", "True"), condition("Stalled", "True")


@pytest.mark.parametrize(
    ("metadata", "status", "verdict"),
    [
        ({"generation": 1}, {}, CURRENT),
        ({"generation": 1}, {"observedGeneration": -1}, IN_PROGRESS),
        ({"generation": 2}, {"observedGeneration": 1, "conditions": [READY]}, IN_PROGRESS),
        ({"generation": 2}, {"observedGeneration": 2, "conditions": [READY]}, CURRENT),
        ({"generation": 2}, {"observedGeneration": 2, "conditions": [NOT_READY]}, IN_PROGRESS),
        ({"generation": 1}, {"conditions": [READY, RECONCILING]}, IN_PROGRESS),
        ({"generation": 1}, {"conditions": [READY, STALLED]}, FAILED),
        ({"generation": 1}, {"conditions": [RECONCILING, STALLED]}, IN_PROGRESS),
        ({"generation": 1}, {"conditions": [STALLED, RECONCILING]}, FAILED),
        ({"generation": 1, "deletionTimestamp": "now"}, {"conditions": [READY]}, TERMINATING),
    ],
)
def test_the_first_rule_that_applies_decides(
    metadata: dict[str, Any], status: dict[str, Any], verdict: str
) -> None:
    assert compute({"metadata": metadata, "status": status}) == verdict
