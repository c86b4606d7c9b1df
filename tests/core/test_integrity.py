"""A Checkpoint that no commit can have made stays out of the tree and says why."""

from __future__ import annotations

import pytest
from tests.core.objects import LATER, NOW, checkpoint, digest, head, line

from espalier.api.checkpoint import Checkpoint
from espalier.api.wire.problem import Problem
from espalier.core.checkpoints import checkpoint as checkpoints
from espalier.core.checkpoints.checkpoint import Evidence
from espalier.core.conditions import find, is_true
from espalier.core.lineage.lineage import BASE_POINT
from espalier.core.lineage.lineage_index import grow

TRUE = line("m", 3)
LIES = {
    "a path that leaves the model's root": (
        checkpoint(step=4, parent="m-000003", uri="volume://checkpoints/../../etc/passwd"),
        "InvalidURI",
        "spec.uri",
    ),
    "a path of other bytes": (
        checkpoint(step=4, parent="m-000003", uri=f"volume://checkpoints/sha256-{'0' * 64}"),
        "InvalidURI",
        "spec.uri",
    ),
    "a name of 63 characters": (
        checkpoint(step=4, parent="m-000003", name="m" * 63),
        "InvalidName",
        "named m-000004",
    ),
    "labels of another model": (
        checkpoint(step=4, parent="m-000003", labels={"espalier.dev/model": "other"}),
        "InvalidLabel",
        "espalier.dev/model is other",
    ),
    "labels of another branch": (
        checkpoint(step=4, parent="m-000003", labels={"espalier.dev/branch": "b7"}),
        "InvalidLabel",
        "espalier.dev/branch is b7",
    ),
    "itself as its parent": (
        checkpoint(step=4, parent="m-000004"),
        "InvalidParent",
        "spec.parentRef",
    ),
    "metrics that are none": (
        checkpoint(step=4, parent="m-000003", annotations={"espalier.dev/metrics": "[1"}),
        "InvalidMetrics",
        "espalier.dev/metrics",
    ),
    "metrics that are too deep": (
        checkpoint(step=4, parent="m-000003", annotations={"espalier.dev/metrics": "[" * 100_000}),
        "InvalidMetrics",
        "espalier.dev/metrics",
    ),
    "a metric that is no number": (
        checkpoint(step=4, parent="m-000003", annotations={"espalier.dev/metrics": '{"a": "b"}'}),
        "InvalidMetrics",
        "espalier.dev/metrics",
    ),
    "a parent that is not one step before": (
        checkpoint(step=9, parent="m-000003"),
        "InvalidParent",
        "m-000003 is at step 3",
    ),
}


@pytest.mark.parametrize(("liar", "reason", "says"), LIES.values(), ids=LIES)
def test_an_object_that_lies_stays_out_of_the_tree_and_says_why(
    liar: Checkpoint, reason: str, says: str
) -> None:
    lineage = grow([*TRUE, liar], BASE_POINT)
    assert [c.metadata.name for c in lineage.line("main")] == [c.metadata.name for c in TRUE]
    status = checkpoints.decide(liar, [], lineage, NOW)
    ready, stalled = (find(status.conditions, type_) for type_ in ("Ready", "Stalled"))
    assert ready is not None
    assert stalled is not None
    assert (ready.status, stalled.status, stalled.reason) == ("False", "True", reason)
    assert says in stalled.message


def test_in_a_cycle_of_parents_only_the_one_that_lies_is_left_out() -> None:
    first = checkpoint(step=1, parent="m-000003")
    lineage = grow([first, *TRUE[1:]], BASE_POINT)
    assert set(lineage.faults) == {"m-000001"}
    assert [c.metadata.name for c in lineage.line("main")] == ["m-000002", "m-000003"]


def test_a_label_that_is_mended_brings_the_checkpoint_back() -> None:
    wrong = checkpoint(step=4, parent="m-000003", labels={"espalier.dev/model": "other"})
    status = checkpoints.decide(wrong, [], grow([*TRUE, wrong], BASE_POINT), NOW)
    mended = checkpoint(step=4, parent="m-000003").model_copy(update={"status": status})
    after = checkpoints.decide(mended, [], grow([*TRUE, mended], BASE_POINT), LATER)
    assert is_true(after.conditions, "Ready")


REFUSED = Evidence(Problem(detail="a file is altered", reason="FileAltered", remedy="Restore it"))


def seen(evidence: Evidence, of: Checkpoint) -> Checkpoint:
    lineage = grow([*TRUE[:2], of], BASE_POINT)
    status = checkpoints.decide(of, [], lineage, NOW, evidence)
    return of.model_copy(update={"status": status})


@pytest.mark.parametrize("reason", ["RankTooHigh", "WrongBase"])
def test_what_only_a_server_for_another_model_said_goes_with_that_server(reason: str) -> None:
    unfit = Evidence(Problem(detail="rank 8, this server takes 4", reason=reason))
    refused = seen(unfit, TRUE[2])
    assert is_true(refused.status.conditions, "Stalled")
    assert is_true(seen(Evidence(), refused).status.conditions, "Ready")


def test_what_loading_found_stays_on_record_until_the_bytes_were_loaded() -> None:
    refused = seen(REFUSED, TRUE[2])
    forgotten = seen(Evidence(), refused)
    for checked in (refused, forgotten):
        said = find(checked.status.conditions, "Stalled")
        assert said is not None
        assert (said.status, said.reason) == ("True", "FileAltered")
        assert "Restore it" in said.message
    repaired = seen(Evidence(verified=True), forgotten)
    assert is_true(repaired.status.conditions, "Ready")
    assert find(repaired.status.conditions, "Stalled") is None


@pytest.mark.parametrize(
    "evidence", [Evidence(), REFUSED, Evidence(verified=True)], ids=["untouched", "refused", "read"]
)
@pytest.mark.parametrize("found", [*TRUE, *(lie for lie, _, _ in LIES.values())])
def test_of_its_own_status_a_checkpoint_decides_the_same(
    found: Checkpoint, evidence: Evidence
) -> None:
    """So that what a pass has just written needs no other pass."""
    lineage = grow([*TRUE, found], BASE_POINT)
    heads = [
        head(status={"current": {"name": "m-000003", "step": 3, "digest": digest("m-000003")}})
    ]
    before = checkpoints.decide(found, heads, lineage, NOW, REFUSED)
    written = found.model_copy(update={"status": before})
    status = checkpoints.decide(written, heads, lineage, NOW, evidence)
    again = found.model_copy(update={"status": status})
    assert checkpoints.decide(again, heads, lineage, LATER, evidence) == status


def test_a_mark_of_many_heads_with_long_names_is_cut_to_what_the_api_takes() -> None:
    current = {"name": "m-000003", "step": 3, "digest": digest("m-000003")}
    heads = [head(name=f"{n:063d}", status={"current": current}) for n in range(20)]
    status = checkpoints.decide(TRUE[2], heads, grow(TRUE, BASE_POINT), NOW)
    assert status.head_mark is not None
    assert len(status.head_mark) == 400
    assert len(status.heads) == 16
