"""Views of a run that trains, for tests to change, and what its conditions say."""

from __future__ import annotations

from typing import Any

from tests.core.objects import head, model, pins, run, tracks

from espalier.core.conditions import find
from espalier.core.pods.pods import JobState, Pod
from espalier.core.run.run import RunDecision
from espalier.core.run.run_view import RunView

SERVED = {
    "term": 1,
    "agreed": tracks(1),
    "current": {"name": "m-000001", "step": 1},
}
PAUSED = {
    **SERVED,
    "term": 2,
    "agreed": pins(2, "m-000001", "Pause"),
}
BRANCHED = {
    **SERVED,
    "term": 2,
    "agreed": pins(2, "m-000001", "Branch"),
}
RUNNER = Pod(
    "r-runner",
    "uid-1",
    "runner",
    "10.0.0.1",
    "1",
    started=True,
    ready=True,
    terminating=False,
    finished=False,
)


def job(**changes: Any) -> JobState:
    facts = {"uid": "j", "generation": 1, "complete": False, "failed": False, "terminating": False}
    return JobState(**{**facts, **changes})


def view(**changes: Any) -> RunView:
    """A run that trains, but for the changes."""
    subject = changes.pop("run", run())
    facts: dict[str, Any] = {
        "run": subject,
        "model": model(),
        "head": head(status=SERVED),
        "siblings": [subject],
        "assigned": True,
        "runner": job(),
        "runner_pods": [RUNNER],
    }
    return RunView(**{**facts, **changes})


def said(decision: RunDecision, type_: str) -> str:
    found = find(decision.status.conditions, type_)
    return f"{found.status}/{found.reason}" if found else ""
