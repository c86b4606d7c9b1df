"""A finished run goes after its time; one that Git would make again only frees what it has."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.objects import LATER, NOW, condition, run
from tests.core.run_views import job, view

from espalier.core.conditions import find
from espalier.core.gitowner import GitOwner
from espalier.core.run import run as runs
from espalier.core.run.run import RunDecision

SUCCEEDED = {"step": 10, "conditions": [condition("Succeeded", "True", "StepsCompleted")]}
FAILED = {"conditions": [condition("Succeeded", "False", "UnknownDataset", message="no such")]}
ARGO = GitOwner("Argo CD", "team")
DONE = {"runner": job(complete=True, completed=NOW), "runner_pods": []}


def decided(status: dict[str, Any], seconds: int | None, **changes: Any) -> RunDecision:
    ttl = {} if seconds is None else {"ttlSecondsAfterFinished": seconds}
    return runs.decide(view(run=run(status=status, **ttl), **{**DONE, **changes}), LATER)


@pytest.mark.parametrize(
    ("status", "seconds", "expired", "again"),
    [
        (SUCCEEDED, None, False, None),
        (SUCCEEDED, 61, False, 1),
        (SUCCEEDED, 60, True, None),
        (SUCCEEDED, 0, True, None),
        (FAILED, 60, True, None),
        ({"step": 3}, 0, False, None),
        # Nobody has read yet that it ended.
        ({"step": 10}, 0, False, None),
    ],
)
def test_a_run_goes_when_its_time_after_the_end_is_over(
    status: dict[str, Any], seconds: int | None, expired: bool, again: float | None
) -> None:
    decision = decided(status, seconds)
    assert (decision.expired, decision.again_seconds) == (expired, again)


def test_one_that_was_edited_after_it_had_failed_is_no_finished_run() -> None:
    edited = run(status=FAILED, ttlSecondsAfterFinished=0, meta={"generation": 2})
    assert not runs.decide(view(run=edited), LATER).expired


@pytest.mark.parametrize("status", [SUCCEEDED, FAILED], ids=["succeeded", "failed"])
def test_a_run_from_git_stays_and_gives_back_its_job(status: dict[str, Any]) -> None:
    decision = decided(status, 60, owner=ARGO)
    assert (decision.expired, decision.runner) == (False, "Delete")
    found = find(decision.status.conditions, "Succeeded")
    assert found is not None
    assert "Argo CD (team) applies it and would make it again" in found.message
    # The next pass says no more than that.
    again = decided(decision.status.wire(), 60, owner=ARGO, runner=None)
    assert (again.expired, again.runner) == (False, "Keep")
    assert find(again.status.conditions, "Succeeded") == found
