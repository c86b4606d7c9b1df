from __future__ import annotations

import pytest
from tests.core.objects import checkpoint, commit, digest, head, line, pins, tracks

from espalier.api.checkpoint import Checkpoint
from espalier.api.wire.commits import Commit
from espalier.core.checkpoints.commits import (
    Accepted,
    Fenced,
    Known,
    NameTaken,
    checkpoint_body,
    judge,
    run_uid,
)
from espalier.core.lineage.lineage import BASE_POINT, Lineage, Point
from espalier.core.lineage.lineage_index import grow

TREE = [*line("m", 3), checkpoint(step=2, branch="b2", term=2, parent="m-000001")]
LIVE_B2 = {
    "term": 2,
    "branch": "b2",
    "branchBase": {"name": "m-000001"},
    "agreed": tracks(2),
}
RETURNED = {"term": 3, "branch": "main", "agreed": tracks(3)}
PAUSED = {
    "term": 2,
    "branch": "main",
    "agreed": pins(2, "m-000001", "Pause"),
}


def lineage() -> Lineage:
    return grow(TREE, BASE_POINT)


@pytest.mark.parametrize(
    ("arrived", "parent"),
    [
        (commit(4, parent="m-000003"), "m-000003"),
        (commit(3, branch="b2", term=2, parent="m-b2-000002"), "m-b2-000002"),
        (commit(2, branch="b3", term=3, parent="m-000001"), "m-000001"),
        (commit(1, branch="b3", term=3), ""),
    ],
    ids=["main", "branch", "new branch", "new branch from the base"],
)
def test_a_commit_that_extends_its_branch_is_accepted(arrived: Commit, parent: str) -> None:
    verdict = judge(arrived, "m", lineage(), head(status=LIVE_B2))
    assert isinstance(verdict, Accepted)
    assert verdict.parent.name == parent


def renamed(name: str) -> Commit:
    """A commit that extends the tree, but for its name."""
    return commit(4, parent="m-000003").model_copy(update={"name": name})


def test_a_commit_under_a_siblings_name_is_fenced_though_that_name_is_taken() -> None:
    """Held, it would wait for a person to delete what is the sibling's own."""
    verdict = judge(renamed("other-000004"), "m", lineage(), None, checkpoint("other", 4))
    assert isinstance(verdict, Fenced)
    assert verdict.reason == "WrongName"


@pytest.mark.parametrize(
    ("arrived", "status", "reason"),
    [
        (commit(3, parent="m-000002", variant="again"), LIVE_B2, "NameTaken"),
        (commit(4, parent="m-000002"), LIVE_B2, "NotTheTip"),
        (commit(5, parent="m-000003"), LIVE_B2, "NotTheTip"),
        (commit(2, branch="b3", term=3, parent="m-000009"), LIVE_B2, "ParentUnknown"),
        (commit(2, branch="b3", term=2, parent="m-000001"), LIVE_B2, "StaleTerm"),
        (commit(3, branch="b2", term=1, parent="m-b2-000002"), LIVE_B2, "StaleTerm"),
        (commit(4, parent="m-000003"), RETURNED, "StaleTerm"),
        (commit(4, model_name="other", parent="m-000003"), LIVE_B2, "WrongModel"),
        # The name that a sibling's next checkpoint is going to have, and one of another step.
        (renamed("other-000004"), LIVE_B2, "WrongName"),
        (renamed("m-000021"), LIVE_B2, "WrongName"),
    ],
)
def test_any_other_commit_is_fenced(
    arrived: Commit, status: dict[str, object], reason: str
) -> None:
    verdict = judge(arrived, "m", lineage(), head(status=status))
    assert isinstance(verdict, Fenced)
    assert verdict.reason == reason


@pytest.mark.parametrize(
    "liar",
    [
        checkpoint(step=4, parent="m-000001"),
        checkpoint(step=4, parent="m-000003", uri="volume://checkpoints/../../etc"),
        checkpoint(step=4, parent="m-000003", content="x", stalled="AdapterNotFound"),
    ],
    ids=["a gap", "a path that leaves the volume", "bytes that nobody has"],
)
def test_a_commit_waits_while_an_object_that_is_no_commit_has_its_name(liar: Checkpoint) -> None:
    arrived = commit(4, parent="m-000003")
    spoilt = grow([*TREE, liar], BASE_POINT)
    assert isinstance(judge(arrived, "m", spoilt, head(status={}), liar), NameTaken)
    assert isinstance(judge(arrived, "m", lineage(), head(status={})), Accepted)


def test_a_commit_waits_while_another_models_checkpoint_has_its_name() -> None:
    arrived, foreign = commit(4, parent="m-000003"), checkpoint("other", 4)
    assert isinstance(judge(arrived, "m", lineage(), None, foreign), NameTaken)


def test_the_step_that_was_under_way_when_a_pin_paused_training_still_counts() -> None:
    assert isinstance(
        judge(commit(4, parent="m-000003"), "m", lineage(), head(status=PAUSED)), Accepted
    )


def test_a_commit_that_is_a_checkpoint_already_is_known() -> None:
    assert judge(commit(3, parent="m-000002"), "m", lineage(), None) == Known()


def test_the_first_commit_of_a_fork_starts_at_its_root() -> None:
    root = Point("origin-000005", 5, digest("origin-000005"))
    fork = grow([], root)
    first = commit(6, parent="origin-000005")
    assert judge(first, "m", fork, None) == Accepted(root)
    assert isinstance(judge(commit(1), "m", fork, None), Fenced)


def test_a_checkpoint_carries_all_that_its_status_is_made_of() -> None:
    body = checkpoint_body(commit(4, parent="m-000003"), "default", Point("m-000003", 3, "d"))
    assert body["spec"]["parentRef"] == {"name": "m-000003"}
    assert body["metadata"]["labels"]["espalier.dev/branch"] == "main"
    assert (
        body["metadata"]["annotations"]["espalier.dev/metrics"] == '{"rollout/reward/mean": "0.5"}'
    )
    assert body["metadata"]["annotations"]["espalier.dev/run-uid"] == "uid-r"
    assert "ownerReferences" not in body["metadata"]


def test_a_commit_says_which_run_it_belongs_to() -> None:
    assert run_uid(commit(1)) == "uid-r"
