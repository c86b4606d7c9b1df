"""What a user reads of a run that goes on, has ended or cannot go on."""

from __future__ import annotations

from typing import Any

import pytest
from tests.runner.standin import spec

from espalier.api.trainingrun import TrainingRun
from espalier.cli.run_progress import standing


def run(generation: int = 1, observed: int = 1, **conditions: tuple[str, str, str]) -> TrainingRun:
    """A run at step 2 of 3; conditions as status, reason, message."""
    status: dict[str, Any] = {
        "observedGeneration": observed,
        "step": 2,
        "metrics": [{"name": "rollout/reward/mean", "value": "0.5"}],
        "progress": {"percent": 66, "estimatedRemainingSeconds": 75},
        "conditions": [
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
            for kind, (status, reason, message) in conditions.items()
        ],
    }
    metadata = {"name": "arith-20", "generation": generation}
    return TrainingRun.model_validate({"metadata": metadata, "spec": spec(), "status": status})


@pytest.mark.parametrize(
    ("conditions", "end", "line"),
    [
        ({}, None, "step 2/3  reward 0.500  about 1:15 left  Pending"),
        (
            {"Ready": ("True", "Training", "step 2 is done")},
            None,
            "step 2/3  reward 0.500  about 1:15 left  Training: step 2 is done",
        ),
        (
            {
                "Ready": ("False", "WaitingForTrainer", ""),
                "Reconciling": ("True", "WaitingForTrainer", "the image is pulled"),
            },
            None,
            "step 2/3  reward 0.500  about 1:15 left  WaitingForTrainer: the image is pulled",
        ),
        (
            {"Ready": ("True", "StepsCompleted", ""), "Succeeded": ("True", "StepsCompleted", "")},
            "Succeeded",
            "step 2/3  reward 0.500  StepsCompleted",
        ),
        (
            {"Stalled": ("True", "RewardsUninformative", "raise sampling.maxTokens")},
            "Stalled",
            "step 2/3  reward 0.500  RewardsUninformative: raise sampling.maxTokens",
        ),
        (
            {"Suspended": ("True", "HeadPinned", "onPin: Pause"), "Ready": ("True", "Idle", "")},
            None,
            "step 2/3  reward 0.500  about 1:15 left  HeadPinned: onPin: Pause",
        ),
    ],
)
def test_the_condition_that_says_most_is_shown(
    conditions: dict[str, tuple[str, str, str]], end: str | None, line: str
) -> None:
    seen = standing(run(**conditions))
    assert seen.end == end
    assert seen.line() == line


@pytest.mark.parametrize("kind", ["Succeeded", "Stalled"])
def test_conditions_of_an_older_spec_end_nothing(kind: str) -> None:
    conditions = {kind: ("True", "Reason", "")}
    assert standing(run(generation=2, observed=1, **conditions)).end is None
    assert standing(run(generation=2, observed=2, **conditions)).end == kind


def test_a_run_that_the_operator_has_not_seen_is_pending() -> None:
    seen = standing(
        TrainingRun.model_validate({"metadata": {"name": "a", "generation": 1}, "spec": spec()})
    )
    assert seen.end is None
    assert seen.line() == "step 0/3  Pending"
