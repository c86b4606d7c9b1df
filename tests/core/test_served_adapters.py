"""What the rollouts are asked for on behalf of all heads of a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.core.objects import LATER, NOW, digest, head, line, model

from espalier.api.checkpointhead import CheckpointHead
from espalier.core.head.served_adapters import DesiredAdapters, choose, desired_adapters, fitting
from espalier.core.lineage.lineage import BASE_POINT
from espalier.core.lineage.lineage_index import grow
from espalier.core.names import adapter_name

wants = DesiredAdapters
TREE = grow(line("m", 3), BASE_POINT)


def adapter(name: str) -> str:
    return adapter_name("m", digest(name))


def serving(name: str, target: str, current: str, created: str = NOW) -> CheckpointHead:
    served = {"name": current, "step": 1, "digest": digest(current)}
    found = head(name=name, status={"target": {"name": target}, "current": served})
    stamped = replace(found.metadata, creation_timestamp=created)
    return found.model_copy(update={"metadata": stamped})


def test_the_leading_head_comes_first_then_the_oldest() -> None:
    young = serving("a", "m-000001", "m-000001", LATER)
    old = serving("z", "m-000002", "m-000001")
    leader = serving("m", "m-000003", "m-000002", LATER)
    found = desired_adapters("m", [young, old, leader], TREE)
    assert [each.head for each in found] == ["m", "z", "a"]
    assert found[0] == wants("m", adapter("m-000003"), adapter("m-000002"))


def test_a_head_without_a_target_or_on_its_way_out_wants_nothing() -> None:
    fresh, leaving = head(name="fresh"), serving("leaving", "m-000001", "m-000001")
    gone = replace(leaving.metadata, deletion_timestamp=NOW)
    assert desired_adapters("m", [fresh, leaving.model_copy(update={"metadata": gone})], TREE) == ()


def test_what_is_served_is_wanted_when_the_target_is_gone() -> None:
    found = desired_adapters("m", [serving("m", "m-000009", "m-000002")], TREE)
    assert [each.adapter for each in found] == [adapter("m-000002")]


DESIRED = (
    wants("m", "x", "x"),
    wants("a", "y", "x"),
    wants("b", "x", "x"),
    wants("c", "base", "base"),
)


@pytest.mark.parametrize(
    ("most", "heads"), [(1, ["m", "b", "c"]), (2, ["m", "a", "b", "c"]), (9, ["m", "a", "b", "c"])]
)
def test_heads_that_share_an_adapter_or_the_base_need_no_room(most: int, heads: list[str]) -> None:
    assert [each.head for each in fitting(DESIRED, model(rollout={"maxAdapters": most}))] == heads


@pytest.mark.parametrize(
    ("desired", "kept"),
    [
        ((), []),
        (DESIRED, [("m", "x"), ("b", "x")]),
        ((wants("c", "base", "base"), *DESIRED), [("c", "base"), ("c", "base")]),
        (
            (wants("m", "x", "w"), wants("a", "x", "y")),
            [("m", "w"), ("a", "w")],
        ),
    ],
)
def test_full_weights_are_those_of_the_first_head_and_of_heads_that_agree_with_it(
    desired: tuple[DesiredAdapters, ...], kept: list[tuple[str, str]]
) -> None:
    chosen = fitting(desired, model(adapter={"type": "Full"}))
    assert [(each.head, each.fallback) for each in chosen] == kept
    assert len(choose(chosen, {"x"})) <= 1


@pytest.mark.parametrize(
    ("refused", "asked"),
    [(set(), ["x", "y"]), ({"y"}, ["x"]), ({"x"}, ["y"]), ({"x", "y"}, [])],
)
def test_a_pod_that_refuses_a_target_is_asked_for_what_its_head_serves(
    refused: set[str], asked: list[str]
) -> None:
    assert choose(DESIRED, refused) == asked
