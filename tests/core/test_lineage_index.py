"""A lineage that was kept up to date is the one that is grown anew."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from tests.core.objects import NOW, checkpoint

from espalier.api.checkpoint import Checkpoint
from espalier.api.meta import OwnerReference
from espalier.core.lineage.lineage import BASE_POINT, Lineage, run_step
from espalier.core.lineage.lineage_index import LineageIndex, grow


def _variants() -> list[Checkpoint]:
    """Versions of the same names: true ones, other rewards, and such as contradict the rest."""
    found = []
    for branch, first, base in (("main", 1, ""), ("b2", 3, "m-000002")):
        for step in range(first, first + 4):
            infix = "" if branch == "main" else f"{branch}-"
            parent = base if step == first else f"m-{infix}{step - 1:06d}"
            for reward, run in (("0.1", "r"), ("0.9", "r"), ("0.4", "s")):
                found.append(
                    checkpoint(
                        step=step,
                        branch=branch,
                        parent=parent,
                        reward=reward,
                        run=run,
                        measured={parent: {"reward/mean": reward}} if run == "r" else {},
                    )
                )
            name = f"m-{infix}{step:06d}"
            found.append(checkpoint(step=step + 3, branch=branch, parent=parent, name=name))
            found.append(checkpoint(step=step, branch=branch, parent=f"m-{step:06d}", name=name))
    return found


VARIANTS = _variants()
CHANGES = st.lists(
    st.one_of(st.sampled_from(VARIANTS), st.sampled_from([c.metadata.name for c in VARIANTS])),
    max_size=40,
)


def _shape(lineage: Lineage) -> Lineage:
    """Without the best rewards, which outlive the checkpoints that had them."""
    return replace(lineage, best={})


@given(CHANGES)
def test_a_lineage_kept_up_to_date_is_the_one_grown_anew(
    changes: list[Checkpoint | str],
) -> None:
    growth, left = LineageIndex(), dict[str, Checkpoint]()
    for change in changes:
        if isinstance(change, str):
            growth.remove(change)
            left.pop(change, None)
        else:
            growth.put(change)
            left[change.metadata.name] = change
        lineage, anew = growth.lineage(BASE_POINT), LineageIndex(left.values())
        assert _shape(lineage) == _shape(anew.lineage(BASE_POINT))
        assert [c.metadata.name for c in growth.made_by("uid-r")] == [
            c.metadata.name for c in anew.made_by("uid-r")
        ]
        assert lineage.best.keys() <= lineage.by_branch.keys()
        for branch, best in anew.lineage(None).best.items():
            assert float(lineage.best[branch]) >= float(best)


def test_a_run_has_its_own_checkpoints_in_the_order_that_they_were_made() -> None:
    later = checkpoint(step=2, branch="b2", parent="m-000001", run_step=3)
    made = [checkpoint(step=n, parent=f"m-{n - 1:06d}" if n > 1 else "") for n in (2, 1)]
    growth = LineageIndex([later, *made, checkpoint(step=3, parent="m-000002", run="another")])
    assert [run_step(c) for c in growth.made_by("uid-r")] == [1, 2, 3]
    assert [c.metadata.name for c in growth.made_by("uid-another")] == ["m-000003"]
    assert growth.made_by("uid-unknown") == ()


def test_what_is_deleted_and_still_there_is_leaving() -> None:
    there = checkpoint(step=1)
    metadata = replace(there.metadata, deletion_timestamp=NOW)
    gone = there.model_copy(update={"metadata": metadata})
    growth = LineageIndex([there])
    assert growth.leaving() == []
    assert growth.lineage(BASE_POINT).tip("main") == there
    growth.put(gone)
    assert growth.leaving() == [gone]
    # Nothing goes on from it: a model that is made anew begins without it.
    assert growth.lineage(BASE_POINT).by_name == {}
    assert growth.lineage(BASE_POINT).newest("main") == BASE_POINT
    growth.remove("m-000001")
    owner = OwnerReference(kind="TrainableModel", uid="first")
    metadata = replace(there.metadata, owner_references=(owner,))
    growth.put(there.model_copy(update={"metadata": metadata}))
    growth.belong_to("first")
    assert [*growth.lineage(BASE_POINT).by_name] == ["m-000001"]
    # Before the garbage collector has come to it, too.
    growth.belong_to("second")
    assert growth.lineage(BASE_POINT).by_name == {}
    growth.remove("m-000001")
    assert (growth.leaving(), growth.empty) == ([], True)
    assert grow([], None) == growth.lineage(None)
