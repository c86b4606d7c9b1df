"""What Events and a Deployment's condition say about pods that do not come to be."""

from __future__ import annotations

from typing import Any

from espalier.core.pods import blockers
from espalier.core.pods.blockers import Blocker

QUOTA = 'Error creating: pods "t-import-{}" is forbidden: exceeded quota: q, limited: cpu=8'


def event(reason: str, message: str, at: str, **changes: Any) -> dict[str, Any]:
    return {
        "type": "Warning",
        "reason": reason,
        "message": message,
        "involvedObject": {"kind": "Job", "uid": "j"},
        "lastTimestamp": at,
        **changes,
    }


def test_the_newest_warning_counts_and_says_the_same_at_every_try() -> None:
    old = event("FailedCreate", "something else", "2026-01-01T00:00:00Z")
    new = event("FailedCreate", QUOTA.format("abcde"), "2026-01-01T00:01:00Z")
    again = event("FailedCreate", QUOTA.format("vwxyz"), "2026-01-01T00:02:00Z")
    said = blockers.by_uid("Job", [old, new])
    assert said == blockers.by_uid("Job", [again, old])
    assert said["j"].message == (
        "Error creating: the pod is forbidden: exceeded quota: q, limited: cpu=8"
    )


def test_what_no_terminal_should_be_sent_is_left_out() -> None:
    said = blockers.by_uid("Job", [event("FailedCreate", "a\x1b[2Jb\nc", "2026-01-01T00:00:00Z")])
    assert said["j"].message == "a [2Jb c"


def test_events_of_the_new_api_tell_their_time_by_their_series() -> None:
    early = event("FailedCreate", "early", "", lastTimestamp=None, eventTime="2026-01-01T00:03:00Z")
    late = event(
        "FailedCreate",
        "late",
        "",
        lastTimestamp=None,
        eventTime="2026-01-01T00:00:00Z",
        series={"lastObservedTime": "2026-01-01T00:09:00.123456Z"},
    )
    assert blockers.by_uid("Job", [late, early])["j"].message == "late"


def test_what_tells_nothing_about_a_start_is_passed_over() -> None:
    others = [
        event("BackoffLimitExceeded", "x", "2026-01-01T00:00:00Z"),
        event("FailedCreate", "x", "2026-01-01T00:00:00Z", type="Normal"),
        event("FailedCreate", "x", "2026-01-01T00:00:00Z", involvedObject={"kind": "Pod"}),
    ]
    assert blockers.by_uid("Job", others) == {}


def test_a_deployment_says_itself_that_its_pods_cannot_be_made() -> None:
    failure = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": 'pods "t-rollout-7c-x" is forbidden: no PriorityClass with name nope was found',
    }
    said = blockers.uncreated({"status": {"conditions": [failure]}})
    assert said == Blocker(
        "FailedCreate", "the pod is forbidden: no PriorityClass with name nope was found"
    )
    assert blockers.uncreated({"status": {"conditions": [{**failure, "status": "False"}]}}) is None
    assert blockers.uncreated(None) is None
