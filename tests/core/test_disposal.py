"""What becomes of the bytes of a deleted Checkpoint, and that nothing can hold it for ever."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.objects import NOW, commit, line, model

from espalier.api.checkpoint import Checkpoint
from espalier.core.checkpoints import disposal
from espalier.core.checkpoints.commits import checkpoint_body
from espalier.core.checkpoints.disposal import (
    BATCH,
    CLAIM_ANNOTATION,
    FINALIZER,
    GATHER,
    RETAINED,
    TIMEOUT,
    DisposalView,
    decide,
    is_marked,
    marked,
    wanted,
)
from espalier.core.lineage.lineage import BASE_POINT
from espalier.core.pods.pods import JobState, Pod

DELETE = model(deletionPolicy="Delete")
NEW = checkpoint_body(commit(1), "default", BASE_POINT)


def after(wait: timedelta) -> str:
    return (datetime.fromisoformat(NOW) + wait).strftime("%Y-%m-%dT%H:%M:%SZ")


def leaving(count: int, claim: str = "weights") -> list[Checkpoint]:
    gone = {
        "deletion_timestamp": NOW,
        "finalizers": (FINALIZER,),
        "annotations": {CLAIM_ANNOTATION: claim},
    }
    return [
        c.model_copy(update={"metadata": replace(c.metadata, **gone)}) for c in line("m", count)
    ]


def job(**changes: Any) -> JobState:
    return JobState(
        "uid", 0, **{"complete": False, "failed": False, "terminating": False, **changes}
    )


def pod(message: str = "", **changes: Any) -> Pod:
    facts = ("p", "uid-1", "collector", "", "", False, False, False, True)
    return Pod(*facts, message=message, **changes)


def names(found: list[Checkpoint]) -> set[str]:
    return {checkpoint.metadata.name for checkpoint in found}


def test_a_checkpoint_under_retain_is_a_plain_record() -> None:
    body = marked(NEW, wanted(model(), forked=False))
    assert "finalizers" not in body["metadata"]
    assert "ownerReferences" not in body["metadata"]
    assert is_marked(body, RETAINED)
    assert not is_marked(body, wanted(DELETE, forked=False))


def test_a_checkpoint_under_delete_waits_for_its_bytes_and_goes_with_its_model() -> None:
    asked = wanted(DELETE, forked=False)
    body = marked(NEW, asked)
    assert body["metadata"]["finalizers"] == [FINALIZER]
    assert body["metadata"]["annotations"][CLAIM_ANNOTATION] == "weights"
    (owner,) = body["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == ("uid-m", False)
    assert is_marked(body, asked)
    assert is_marked(marked(body, RETAINED), RETAINED)


def test_what_a_fork_started_from_outlives_its_model() -> None:
    body = marked(NEW, wanted(DELETE, forked=True))
    assert "ownerReferences" not in body["metadata"]
    assert body["metadata"]["finalizers"] == [FINALIZER]


def test_marks_leave_out_what_others_wrote_on_the_object() -> None:
    written = {"labels": {"team": "a", **NEW["metadata"]["labels"]}, "finalizers": ["theirs/x"]}
    body = marked({**NEW, "metadata": {**NEW["metadata"], **written}}, RETAINED)
    assert body["metadata"]["labels"] == NEW["metadata"]["labels"]
    assert "finalizers" not in body["metadata"]


def test_deletions_are_gathered_and_then_one_job_serves_them() -> None:
    view = DisposalView(leaving(3), {})
    early = decide(view, after(GATHER / 2))
    assert (early.job, early.again_seconds) == ("Keep", GATHER.total_seconds() / 2)
    due = decide(view, after(GATHER))
    assert (due.job, names([*due.batch]), due.released) == ("Create", names(leaving(3)), {})
    full = decide(DisposalView(leaving(BATCH + 5), {}), NOW)
    assert (full.job, len(full.batch)) == ("Create", BATCH)


def test_what_something_needs_is_not_handed_to_the_job() -> None:
    needs = {"m-000002": "CheckpointHead m serves it"}
    due = decide(DisposalView(leaving(3), needs), after(GATHER))
    assert names([*due.batch]) == {"m-000001", "m-000003"}


def test_a_job_serves_one_claim() -> None:
    mixed = [*leaving(1), leaving(2, "other")[1]]
    due = decide(DisposalView(mixed, {}), after(GATHER))
    assert names([*due.batch]) == {"m-000001"}


def test_when_the_job_is_done_all_it_was_given_go_and_what_it_refused_says_why() -> None:
    found = leaving(3)
    kept = {found[1].spec.digest: "the trainer resumes from it"}
    view = DisposalView(
        found,
        {},
        job=job(complete=True),
        job_pods=[pod(json.dumps({"removed": 1, "kept": kept}))],
        handed={"m-000001", "m-000002"},
    )
    decision = decide(view, after(GATHER))
    assert decision.released == {"m-000001": "", "m-000002": "the trainer resumes from it"}
    assert decision.job == "Delete"


@pytest.mark.parametrize("message", ["", "no json", "[]", '{"digest": "x"}'])
def test_a_job_that_succeeded_and_left_no_word_has_removed_all(message: str) -> None:
    view = DisposalView(
        leaving(1), {}, job=job(complete=True), job_pods=[pod(message)], handed={"m-000001"}
    )
    assert decide(view, NOW).released == {"m-000001": ""}


def test_a_job_that_failed_keeps_the_bytes_and_lets_the_objects_go() -> None:
    view = DisposalView(
        leaving(1), {}, job=job(failed=True, failure="BackoffLimitExceeded: "), handed={"m-000001"}
    )
    released = decide(view, NOW).released
    assert released == {"m-000001": "the collector failed: BackoffLimitExceeded: "}


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        (json.dumps({"removed": 1, "kept": {}}), ""),
        ("no report", "the collector failed: the container ended with exit code 1"),
    ],
)
def test_a_sidecar_that_keeps_the_job_alive_holds_nothing_up(message: str, kept: str) -> None:
    over = pod(message, outlived=("proxy",), died="the container ended with exit code 1")
    view = DisposalView(leaving(1), {}, job=job(), job_pods=[over], handed={"m-000001"})
    decision = decide(view, after(GATHER))
    assert (decision.job, decision.released) == ("Delete", {"m-000001": kept})


def test_while_the_job_works_nothing_is_done_twice() -> None:
    view = DisposalView(leaving(2), {}, job=job(), handed={"m-000001"})
    decision = decide(view, after(GATHER))
    assert (decision.job, decision.released) == ("Keep", {})


def test_a_claim_that_is_gone_lets_its_checkpoints_go_at_once() -> None:
    lost = {"weights": "PersistentVolumeClaim weights is gone"}
    decision = decide(DisposalView([*leaving(1), leaving(2, "other")[1]], {}, lost), NOW)
    assert decision.released == {"m-000001": "PersistentVolumeClaim weights is gone"}


@pytest.mark.parametrize(
    ("view", "why"),
    [
        (
            DisposalView(leaving(1), {"m-000001": "CheckpointHead m serves it"}),
            "CheckpointHead m serves it",
        ),
        (
            DisposalView(
                leaving(1),
                {},
                job=job(),
                job_pods=[pod(waiting="ImagePullBackOff: no", waiting_reason="ImagePullBackOff")],
                handed={"m-000001"},
            ),
            "p: ImagePullBackOff: no",
        ),
        (DisposalView(leaving(1), {}, job=job(), handed={"m-000001"}), "the Job has not ended"),
    ],
    ids=["needed", "a pod that cannot start", "a job without end"],
)
def test_after_the_timeout_the_object_goes_the_bytes_stay_and_it_says_why(
    view: DisposalView, why: str
) -> None:
    assert decide(view, after(TIMEOUT - timedelta(seconds=1))).released == {}
    released = decide(view, after(TIMEOUT)).released
    assert released == {"m-000001": f"not removed within 15 minutes: {why}"}


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(1, 6),
    needed=st.sets(st.integers(1, 6)),
    handed=st.sets(st.integers(1, 6)),
    state=st.sampled_from(["none", "working", "complete", "failed", "terminating"]),
    waited=st.integers(0, 2 * int(TIMEOUT.total_seconds())),
)
def test_whatever_happens_every_checkpoint_is_let_go_in_time_and_no_needed_byte_is_removed(
    count: int, needed: set[int], handed: set[int], state: str, waited: int
) -> None:
    found = leaving(count)
    by_number = {n: c.metadata.name for n, c in enumerate(found, 1)}
    states = {
        "none": None,
        "working": job(),
        "complete": job(complete=True),
        "failed": job(failed=True),
        "terminating": job(terminating=True),
    }
    view = DisposalView(
        found,
        {by_number[n]: "a head" for n in needed if n in by_number},
        job=states[state],
        handed={by_number[n] for n in handed if n in by_number},
    )
    decision = decide(view, after(timedelta(seconds=waited)))
    assert not names([*decision.batch]) & view.needs.keys()
    assert not names([*decision.batch]) & decision.released.keys()
    left = names(found) - decision.released.keys()
    if waited >= TIMEOUT.total_seconds():
        assert not left
    else:
        assert all(decision.again_seconds is not None for _ in left)
        limit = TIMEOUT.total_seconds() - waited
        assert decision.again_seconds is None or decision.again_seconds <= limit
    if view.job is not None:
        assert decision.job != "Create"
    assert disposal.decide(view, after(timedelta(seconds=waited))) == decision
