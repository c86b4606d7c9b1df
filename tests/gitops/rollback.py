"""Where every way to roll back must end, with Argo CD, with Flux and by hand."""

from __future__ import annotations

from typing import Any

from espalier.kube.objects import Body

# What two heads that went the same way may still differ in: when, on which edit, on which pods.
# Who edited the head is what differs between the ways.
INCIDENTAL = ("time", "lastTransitionTime", "observedGeneration", "generation", "editor")

# Steps 1 to 3 were taken; then pins to step 1, to step 2 and back to step 1.
CURRENT = {"name": "arith-000001", "step": 1, "term": 4}
HISTORY = [
    ("arith-000001", 4, "Pinned"),
    ("arith-000002", 3, "Pinned"),
    ("arith-000001", 2, "Pinned"),
    ("arith-000003", 1, "Advanced"),
    ("arith-000002", 1, "Advanced"),
    ("arith-000001", 1, "Advanced"),
    ("", 1, "Advanced"),
]


def essence(status: Body) -> Body:
    """A head's status without what is incidental."""
    kept: Body = _without(status)
    for pod in kept["pods"]:
        del pod["name"]
    return kept


def assert_rolled_back(ends: list[Body]) -> None:
    """Every status in the end is the same, and is that of the rollback."""
    for end in ends:
        assert end == ends[0]
        current = end["current"]
        assert {name: current[name] for name in CURRENT} == CURRENT
        assert [(m["name"], m["term"], m["reason"]) for m in end["history"]] == HISTORY
        assert end["target"] == {"name": "arith-000001"}
        assert end["previous"] == {"name": "arith-000002"}
        assert end["latest"] == {"name": "arith-000003"}
        assert [pod["digest"] for pod in end["pods"]] == [current["digest"]]


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without(v) for k, v in value.items() if k not in INCIDENTAL}
    if isinstance(value, list):
        return [_without(inner) for inner in value]
    return value
