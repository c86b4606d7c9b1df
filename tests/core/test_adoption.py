"""Which checkpoints on a volume become Checkpoints again."""

from __future__ import annotations

from tests.core.objects import NOW, commit, head, model, tracks

from espalier.api.checkpoint import Checkpoint
from espalier.core.checkpoints.adoption import plan
from espalier.core.checkpoints.commits import checkpoint_body
from espalier.core.head.head import HeadView, decide
from espalier.core.lineage.lineage import BASE_POINT, Point
from espalier.core.lineage.lineage_index import grow

MAIN = [commit(1), commit(2, parent="m-000001"), commit(3, parent="m-000002")]
B2 = [commit(2, branch="b2", term=2, parent="m-000001")]


def test_all_of_the_tree_is_adopted_parents_first_whatever_the_order_on_the_volume() -> None:
    adoption = plan([*B2, *reversed(MAIN)], {})
    assert [c.name for c in adoption.adopted] == [
        "m-000001",
        "m-000002",
        "m-b2-000002",
        "m-000003",
    ]
    assert adoption.refused == ()


def test_what_is_there_already_stays_as_it_is() -> None:
    adoption = plan(MAIN, {"m-000002": MAIN[1].digest})
    assert [c.name for c in adoption.adopted] == ["m-000001", "m-000003"]
    assert [c.name for c in adoption.present] == ["m-000002"]
    again = plan(MAIN, {c.name: c.digest for c in MAIN})
    assert (again.adopted, again.refused) == ((), ())


def test_of_two_at_one_place_the_one_that_training_went_on_from_is_taken() -> None:
    fenced = commit(2, parent="m-000001", term=3, variant="fenced")
    adoption = plan([*MAIN, fenced], {})
    assert fenced not in adoption.adopted
    ((name, why),) = adoption.refused
    assert name == "m-000002"
    assert f"{fenced.digest} was fenced" in why


def test_of_two_tips_the_one_of_the_later_term_is_taken() -> None:
    zombie = commit(4, parent="m-000003", variant="zombie")
    taken = commit(4, parent="m-000003", term=2)
    adoption = plan([*MAIN, zombie, taken], {})
    assert adoption.adopted[-1] == taken


def test_what_grew_from_one_that_stays_out_stays_out_too() -> None:
    fenced = commit(3, parent="m-000002", variant="fenced")
    onward = fenced.model_copy(
        update={
            "name": "m-000004",
            "step": 4,
            "parent": fenced.digest,
            "parent_name": "m-000003",
            "digest": commit(4).digest,
        }
    )
    held = {"m-000003": MAIN[2].digest}
    adoption = plan([*MAIN[:2], fenced, onward], held)
    assert [name for name, _ in adoption.refused] == ["m-000003", "m-000004"]
    assert "is not what Checkpoint m-000003 is" in adoption.refused[0][1]
    assert "grew from m-000003" in adoption.refused[1][1]


def test_retention_has_left_gaps_and_the_rest_is_adopted() -> None:
    assert [c.name for c in plan([MAIN[0], MAIN[2]], {}).adopted] == ["m-000001", "m-000003"]


def test_a_head_that_began_before_the_adoption_takes_up_branch_and_term() -> None:
    status = {
        "term": 1,
        "branch": "main",
        "agreed": tracks(1),
        "target": {"name": ""},
    }
    fresh = head(status=status)
    adopted = []
    for found in [*MAIN, *B2]:
        body = checkpoint_body(found, "default", Point(found.parent_name, 0, found.parent))
        status = {"conditions": [], "observedGeneration": 1}
        adopted.append(Checkpoint.model_validate({**body, "status": status}))
    view = HeadView(fresh, model(), grow(adopted, BASE_POINT))
    moved = decide(view, NOW).status
    assert (moved.term, moved.branch) == (2, "b2")
