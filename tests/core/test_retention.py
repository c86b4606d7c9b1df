"""Which checkpoints may go, and that the tree, the heads and training do not notice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.objects import NOW, checkpoint, commit, digest, head, line, model, run

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHead
from espalier.api.saved import Save
from espalier.core.checkpoints.commits import Accepted, Passed, judge
from espalier.core.checkpoints.retention import RetentionView, expendable, needed, needed_elsewhere
from espalier.core.head.head import decide
from espalier.core.head.head_view import HeadView, SamplerPod
from espalier.core.lineage.lineage import BASE_POINT, Lineage, recorded_bases
from espalier.core.lineage.lineage_index import grow
from espalier.core.model.drawn_tree import grown, render
from espalier.core.names import adapter_name, checkpoint_name, parse_checkpoint_name


def view(checkpoints: list[Checkpoint], *heads: CheckpointHead, **policy: Any) -> RetentionView:
    rules = {"checkpoint": policy} if policy else {}
    return RetentionView(grow(checkpoints, BASE_POINT), [run(**rules)], heads)


def steps(found: list[Checkpoint]) -> list[int]:
    return [checkpoint.spec.step for checkpoint in found]


@pytest.mark.parametrize(
    ("policy", "gone"),
    [
        ({}, []),
        ({"keepLast": 3}, [2, 3, 4, 5]),
        ({"keepLast": 100}, []),
        ({"keepEverySteps": 3}, [2, 4, 5, 7]),
        ({"keepBest": {"metric": "reward/mean", "count": 2}}, [2, 4, 5, 6, 7]),
        # What nobody measures may be measured yet: nothing can be told to be worse than the rest.
        ({"keepBest": {"metric": "eval/reward", "count": 2}}, []),
        ({"keepLast": 2, "keepEverySteps": 4}, [2, 3, 5, 6]),
    ],
)
def test_what_no_rule_keeps_goes_but_for_the_first_and_the_tip(
    policy: dict[str, Any], gone: list[int]
) -> None:
    made = [
        checkpoint(step=n, parent=f"m-{n - 1:06d}" if n > 1 else "", reward=reward)
        for n, reward in enumerate(["0.1", "0.2", "0.9", "0.3", "0.3", "0.2", "0.1", "0.8"], 1)
    ]
    assert steps(expendable(view(made, **policy))) == gone


@pytest.mark.parametrize(
    ("expires", "gone"), [(None, [2, 4, 5]), ("2020-01-01T00:00:00Z", [2, 3, 4, 5])]
)
def test_weights_saved_under_a_name_stay_until_the_name_expires(
    expires: str | None, gone: list[int]
) -> None:
    made = line("m", 6)
    save = Save(path="team.0123456789abcdef:train:0/weights/best", time=NOW, expires_at=expires)
    status = made[2].status.model_copy(update={"saves": [save]})
    made[2] = made[2].model_copy(update={"status": status})
    assert steps(expendable(replace(view(made, keepLast=1), now=NOW))) == gone


def test_of_equal_values_the_newest_is_the_best() -> None:
    made = line("m", 6, reward="0.5")
    policy = {"metric": "reward/mean", "count": 1}
    assert steps(expendable(view(made, keepBest=policy))) == [2, 3, 4, 5]
    two = {"metric": "reward/mean", "count": 2}
    assert steps(expendable(view(made, keepBest=two))) == [2, 3, 4]


def test_what_is_not_measured_yet_stays_beside_the_best() -> None:
    rewards = ["0.9", None, "0.5", "0.7", None, None]
    made = [
        checkpoint(step=n, parent=f"m-{n - 1:06d}" if n > 1 else "", reward=reward)
        for n, reward in enumerate(rewards, 1)
    ]
    # The second was passed over; the fifth and the sixth are newer than all that was measured.
    best = {"metric": "reward/mean", "count": 1}
    assert steps(expendable(view(made, keepBest=best))) == [2, 3, 4]


@pytest.mark.parametrize(
    "status",
    [
        {"current": {"name": "m-000003", "step": 3, "digest": digest("m-000003")}},
        {"target": {"name": "m-000003"}},
        {"previous": {"name": "m-000003"}},
        {"latest": {"name": "m-000003"}},
        {"branchBase": {"name": "m-000003"}},
    ],
    ids=["served", "moved to", "served before", "newest that passes", "branched off"],
)
def test_what_a_head_needs_stays(status: dict[str, Any]) -> None:
    needing = head(name="canary", status=status)
    assert steps(expendable(view(line("m", 6), needing, keepLast=1))) == [2, 4, 5]


@pytest.mark.parametrize("mode", ["Pin", "Track"])
def test_what_a_head_in_git_names_stays_in_either_mode(mode: str) -> None:
    named = head("m", mode, "m-000004")
    assert steps(expendable(view(line("m", 6), named, keepLast=1))) == [2, 3, 5]


def test_what_a_fork_started_from_stays_and_a_head_of_the_fork_counts() -> None:
    fork = model("fork", source={"checkpointRef": {"name": "m-000002"}})
    served = head("fork", status={"current": {"name": "m-000005", "step": 5}})
    found = RetentionView(
        grow(line("m", 6), BASE_POINT), [run(checkpoint={"keepLast": 1})], [served], [fork]
    )
    assert steps(expendable(found)) == [3, 4]
    assert needed(found)["m-000002"] == "TrainableModel fork forks from it"
    assert needed_elsewhere("m-000005", [served], [fork]) == "CheckpointHead fork serves it"
    assert not needed_elsewhere("m-000004", [served], [fork])


def test_what_a_run_is_held_near_stays_while_the_run_names_it() -> None:
    near = run("near", kl={"reference": {"checkpointRef": {"name": "m-000003"}}})
    lineage, rules = grow(line("m", 6), BASE_POINT), run(checkpoint={"keepLast": 1})
    found = RetentionView(lineage, [rules], referring=[near, rules])
    assert steps(expendable(found)) == [2, 4, 5]
    assert needed(found)["m-000003"] == "TrainingRun near names it in kl.reference"
    assert needed_elsewhere("m-000003", [], [], [near]) == needed(found)["m-000003"]
    leaving = run("near", meta={"deletionTimestamp": NOW}, kl=near.spec.kl.wire())
    assert steps(expendable(RetentionView(lineage, [rules], referring=[leaving]))) == [2, 3, 4, 5]


def test_what_a_branch_grows_from_stays_when_its_first_checkpoint_is_gone() -> None:
    b3 = [checkpoint(step=5, branch="b3", term=3, parent="m-b3-000004")]
    lineage = grow([*line("m", 6), *b3], BASE_POINT, {"main": "", "b3": "m-000003"})
    found = RetentionView(lineage, [run(checkpoint={"keepLast": 1})])
    assert steps(expendable(found)) == [2, 4, 5]


def test_the_checkpoints_of_another_run_and_of_a_deleted_one_stay() -> None:
    made = line("m", 4, run="former")
    assert expendable(view(made, keepLast=1)) == []
    leaving = run(meta={"deletionTimestamp": NOW}, checkpoint={"keepLast": 1})
    assert expendable(RetentionView(grow(line("m", 4), BASE_POINT), [leaving])) == []


def test_after_a_rollback_the_new_branch_is_the_newest() -> None:
    b2 = [checkpoint(step=2, branch="b2", term=2, parent="m-000001")]
    b2.append(checkpoint(step=3, branch="b2", term=2, parent="m-b2-000002"))
    b2.append(checkpoint(step=4, branch="b2", term=2, parent="m-b2-000003"))
    found = expendable(view([*line("m", 9), *b2], keepLast=2))
    assert [c.metadata.name for c in found] == [
        *(f"m-{n:06d}" for n in range(2, 9)),
    ]


def test_a_checkpoint_that_is_being_deleted_is_not_counted_among_the_newest() -> None:
    made = line("m", 6)
    leaving = made[4].model_copy(
        update={"metadata": replace(made[4].metadata, deletion_timestamp=NOW)}
    )
    assert steps(expendable(view([*made[:4], leaving, made[5]], keepLast=2))) == [2, 3]


def test_a_deleted_checkpoint_that_the_trainer_tells_of_again_is_not_made_again() -> None:
    left = [line("m", 6)[n] for n in (0, 3, 5)]
    lineage = grow(left, BASE_POINT)
    assert judge(commit(2, parent="m-000001"), "m", lineage, None) == Passed()
    assert isinstance(judge(commit(7, parent="m-000006"), "m", lineage, None), Accepted)


def test_a_tip_that_somebody_deleted_is_made_again() -> None:
    lineage = grow(line("m", 5), BASE_POINT)
    assert isinstance(judge(commit(6, parent="m-000005"), "m", lineage, None), Accepted)


@pytest.mark.parametrize("branch", ["main", "b2", "b10"])
@pytest.mark.parametrize("step", [1, 999999, 1000000])
def test_a_checkpoints_name_tells_its_place(branch: str, step: int) -> None:
    assert parse_checkpoint_name("a-b1", checkpoint_name("a-b1", branch, step)) == (branch, step)


@pytest.mark.parametrize("name", ["other-000001", "m-1", "m-c2-000001", "m", ""])
def test_another_name_tells_no_place(name: str) -> None:
    assert parse_checkpoint_name("m", name) is None


def test_the_gaps_are_drawn_and_the_branches_stay_where_they_grew() -> None:
    b2 = [checkpoint(step=3, branch="b2", term=2, parent="m-000002")]
    whole = grow([*line("m", 6), *b2], BASE_POINT)
    tree = grown(whole, [], "m")
    left = [whole.by_name[name] for name in ("m-000001", "m-000006", "m-b2-000003")]
    drawn = [" ".join(row.split()) for row in render(tree, left)]
    assert drawn == [
        "* m-000006",
        ": 4 deleted",
        "| * m-b2-000003",
        "| : 1 deleted",
        "|/",
        "* m-000001",
        "o base",
    ]


# --- whatever grew and whatever the rules are ---


@st.composite
def trees(draw: st.DrawFn) -> list[Checkpoint]:
    """A main branch and branches off any checkpoint that was there, terms rising."""
    made = line("m", draw(st.integers(1, 12)), reward="0.5")
    for term in range(2, 2 + draw(st.integers(0, 3))):
        base = draw(st.sampled_from(made))
        parent = base.metadata.name
        for step in range(base.spec.step + 1, base.spec.step + 1 + draw(st.integers(1, 6))):
            reward = draw(st.sampled_from(["0.1", "0.7", None]))
            grew = checkpoint(step=step, branch=f"b{term}", term=term, parent=parent, reward=reward)
            made.append(grew)
            parent = grew.metadata.name
    return made


POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "keepLast": st.integers(1, 6),
        "keepEverySteps": st.integers(1, 6),
        "keepBest": st.fixed_dictionaries(
            {"metric": st.just("reward/mean"), "count": st.integers(1, 3)}
        ),
    },
)


def settled(made: list[Checkpoint], seen: CheckpointHead) -> tuple[Any, Any]:
    """The model's status.tree and the head that has followed it."""
    lineage = grow(made, BASE_POINT)
    moved = seen
    for _ in range(3):
        serving = moved.status.target.name if moved.status.target else ""
        loaded = adapter_name("m", lineage.by_name[serving].spec.digest) if serving else "base"
        rollouts = [SamplerPod("pod", True, frozenset({loaded}))]
        looked = HeadView(moved, model(), lineage, named=named(lineage, moved), rollouts=rollouts)
        moved = moved.model_copy(update={"status": decide(looked, NOW).status})
    return grown(lineage, [moved], "m"), moved


def named(lineage: Lineage, seen: CheckpointHead) -> Checkpoint | None:
    ref = seen.spec.checkpoint_ref
    return lineage.by_name.get(ref.name) if ref else None


@settings(max_examples=150, deadline=None)
@given(trees(), POLICIES, st.data())
def test_neither_tree_nor_head_nor_training_notices(
    made: list[Checkpoint], policy: dict[str, Any], data: st.DataObject
) -> None:
    pin = data.draw(st.sampled_from(["", *(c.metadata.name for c in made)]))
    on_pin = data.draw(st.sampled_from(["Pause", "Branch", "Continue"]))
    asked = head("m", "Pin", pin, onPin=on_pin) if pin else head()
    tree, followed = settled(made, asked)
    kept_model = model(status={"tree": tree.wire()})
    bases = recorded_bases(kept_model)
    before = RetentionView(
        grow(made, BASE_POINT, bases), [run(checkpoint=policy)], [followed], [kept_model]
    )
    gone = {c.metadata.name for c in expendable(before)}
    assert not gone & needed(before).keys()
    left = [c for c in made if c.metadata.name not in gone]
    lineage = grow(left, BASE_POINT, bases)
    after = RetentionView(lineage, before.runs, before.heads, before.models)
    assert expendable(after) == []

    regrown = grown(lineage, [followed], "m", tree)
    assert regrown == tree.model_copy(update={"checkpoints": len(left)})
    looked = HeadView(followed, model(), lineage, named=named(lineage, followed))
    assert decide(looked, NOW).status.target == followed.status.target
    for branch in before.lineage.by_branch:
        assert lineage.newest(branch) == before.lineage.newest(branch)
        tip = before.lineage.by_branch[branch][-1]
        following = commit(tip.spec.step + 1, branch=branch, term=9, parent=tip.metadata.name)
        assert judge(following, "m", lineage, followed) == judge(
            following, "m", before.lineage, followed
        )
        whole = [c.metadata.name for c in before.lineage.line(branch)]
        expected = [name for name in whole if name not in gone]
        assert [c.metadata.name for c in lineage.line(branch)] == expected
        assert all(lineage.on_line(name, branch) for name in expected)
    for found in left:
        again = commit(found.spec.step, branch=found.spec.branch, term=found.spec.term)
        assert judge(again, "m", lineage, followed).__class__.__name__ == "Known"


@settings(max_examples=100, deadline=None)
@given(trees(), st.data())
def test_a_line_is_told_from_what_is_left_whatever_was_deleted_by_hand(
    made: list[Checkpoint], data: st.DataObject
) -> None:
    names = [c.metadata.name for c in made]
    gone = data.draw(st.sets(st.sampled_from(names), max_size=len(names) - 1))
    whole = grow(made, BASE_POINT)
    bases = {branch: whole.base(branch) for branch in whole.by_branch}
    lineage = grow([c for c in made if c.metadata.name not in gone], BASE_POINT, bases)
    for branch in lineage.by_branch:
        expected = [c.metadata.name for c in whole.line(branch) if c.metadata.name not in gone]
        found = [c.metadata.name for c in lineage.line(branch)]
        # A branch of which nothing is left ends the walk: where it grew from is not told any more.
        assert found == expected[-len(found) :]
        complete = all(ancestor.spec.branch in lineage.by_branch for ancestor in whole.line(branch))
        assert not complete or found == expected
        for name in found[1:]:
            before = lineage.before(lineage.by_name[name])
            assert before is not None
            assert before.metadata.name == found[found.index(name) - 1]
    tree = grown(lineage, [], "m", grown(whole, [], "m"))
    assert len([row for row in render(tree, lineage.by_name.values()) if "*" in row]) == len(
        lineage.by_name
    )
