from __future__ import annotations

from tests.core.objects import NOW, checkpoint, head, line, tracks

from espalier.core.checkpoints import checkpoint as checkpoints
from espalier.core.lineage.lineage import BASE_POINT, Point
from espalier.core.lineage.lineage_index import grow
from espalier.core.model.drawn_tree import grown, render

MAIN = line("m", 4, reward="0.5")
B2 = [
    checkpoint(step=3, branch="b2", term=2, parent="m-000002", reward="0.7"),
    checkpoint(step=4, branch="b2", term=2, parent="m-b2-000003", reward="0.6"),
]
HEAD = head(
    status={
        "term": 2,
        "branch": "b2",
        "branchBase": {"name": "m-000002"},
        "agreed": tracks(2),
        "current": {"name": "m-b2-000004", "step": 4},
    }
)


def test_a_branch_is_its_base_and_its_range_of_steps() -> None:
    tree = grown(grow([*MAIN, *B2], BASE_POINT), [HEAD], "m")
    assert tree.checkpoints == 6
    main, branch = tree.branches
    assert (main.name, main.base, main.first_step, main.last_step) == ("main", "", 1, 4)
    assert (main.tip, main.best_reward) == ("m-000004", "0.5")
    assert main.superseded
    assert not main.head
    assert (branch.name, branch.base, branch.first_step, branch.last_step) == (
        "b2",
        "m-000002",
        3,
        4,
    )
    assert (branch.best_reward, branch.head, branch.superseded) == ("0.7", True, None)


def test_main_is_superseded_as_soon_as_the_head_branches_off() -> None:
    tree = grown(grow(MAIN, BASE_POINT), [HEAD], "m")
    assert tree.branches[0].superseded


def test_what_lies_before_the_branch_point_is_not_superseded() -> None:
    lineage = grow([*MAIN, *B2], BASE_POINT)
    said = {
        c.metadata.name: checkpoints.is_superseded(c.metadata.name, [HEAD], lineage)
        for c in [*MAIN, *B2]
    }
    assert [name for name, text in said.items() if text] == ["m-000003", "m-000004"]
    assert "branch b2 from m-000002" in said["m-000003"]


def test_a_checkpoint_names_the_heads_that_serve_it() -> None:
    canary = head(name="canary", status={"current": {"name": "m-b2-000004", "step": 4}})
    lineage = grow([*MAIN, *B2], BASE_POINT)
    status = checkpoints.decide(B2[1], [HEAD, canary], lineage, NOW)
    assert status.heads == ["canary", "m"]
    assert status.head_mark == "> canary,m"
    assert {c.type: c.status for c in status.conditions} == {
        "Ready": "True",
        "InUse": "True",
        "Superseded": "False",
    }
    assert [(m.name, m.value) for m in status.metrics] == [("reward/mean", "0.6")]


def test_branches_are_listed_in_the_order_that_they_grew() -> None:
    grown_later = [
        checkpoint(step=2, branch=f"b{n}", term=n, parent="m-000001") for n in (10, 2, 9)
    ]
    tree = grown(grow([*MAIN, *grown_later], BASE_POINT), [], "m")
    assert [branch.name for branch in tree.branches] == ["main", "b2", "b9", "b10"]


def marked(drawn: list[str]) -> list[str]:
    return [" ".join(row.split()) for row in drawn]


def test_the_tree_is_drawn_like_git_log_with_the_head_marked() -> None:
    lineage = grow([*MAIN, *B2], BASE_POINT)
    status = checkpoints.decide(B2[1], [HEAD], lineage, NOW)
    shown = [*MAIN, B2[0], B2[1].model_copy(update={"status": status})]
    assert marked(render(grown(lineage, [HEAD], "m"), shown)) == [
        "* m-000004 0.500",
        "* m-000003 0.500",
        "| * m-b2-000004 0.600 > m",
        "| * m-b2-000003 0.700",
        "|/",
        "* m-000002 0.500",
        "* m-000001 0.500",
        "o base",
    ]


def test_a_branch_of_a_branch_and_two_at_one_place_are_drawn() -> None:
    deep = [
        checkpoint(step=4, branch="b3", term=3, parent="m-b2-000003"),
        checkpoint(step=3, branch="b4", term=4, parent="m-000002"),
    ]
    lineage = grow([*MAIN, *B2, *deep], BASE_POINT)
    assert [
        row.split("m-")[0].rstrip()
        for row in render(grown(lineage, [], "m"), lineage.by_name.values())
    ] == [
        "*",
        "*",
        "| *",
        "| | *",
        "| |/",
        "| *",
        "| | *",
        "| |/",
        "|/",
        "*",
        "*",
        "o base",
    ]


def test_a_fork_is_drawn_down_to_its_origin() -> None:
    root = Point("origin-000005", 5, "d")
    lineage = grow([checkpoint("f", 6, parent="origin-000005")], root)
    drawn = render(grown(lineage, [], "f"), lineage.by_name.values())
    assert drawn[-1] == "o origin-000005"


def test_an_empty_tree_is_drawn_as_nothing() -> None:
    lineage = grow([], BASE_POINT)
    assert render(grown(lineage, [], "m"), []) == []
