"""What the rollouts are asked for on behalf of all heads of a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.core.objects import LATER, NOW, digest, head, line, model

from espalier.api.checkpointhead import CheckpointHead
from espalier.core.head.served_adapters import Wish, choose, fitting, wishes
from espalier.core.lineage.lineage import BASE_POINT
from espalier.core.lineage.lineage_index import grow
from espalier.core.names import adapter_name

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
    found = wishes("m", [young, old, leader], TREE)
    assert [wish.head for wish in found] == ["m", "z", "a"]
    assert found[0] == Wish("m", adapter("m-000003"), adapter("m-000002"))


def test_a_head_without_a_target_or_on_its_way_out_wishes_nothing() -> None:
    fresh, leaving = head(name="fresh"), serving("leaving", "m-000001", "m-000001")
    gone = replace(leaving.metadata, deletion_timestamp=NOW)
    assert wishes("m", [fresh, leaving.model_copy(update={"metadata": gone})], TREE) == ()


def test_what_is_served_is_wished_for_when_the_target_is_gone() -> None:
    found = wishes("m", [serving("m", "m-000009", "m-000002")], TREE)
    assert [wish.adapter for wish in found] == [adapter("m-000002")]


WISHES = (Wish("m", "x", "x"), Wish("a", "y", "x"), Wish("b", "x", "x"), Wish("c", "base", "base"))


@pytest.mark.parametrize(
    ("most", "heads"), [(1, ["m", "b", "c"]), (2, ["m", "a", "b", "c"]), (9, ["m", "a", "b", "c"])]
)
def test_heads_that_share_an_adapter_or_the_base_need_no_room(most: int, heads: list[str]) -> None:
    assert [wish.head for wish in fitting(WISHES, model(rollout={"maxAdapters": most}))] == heads


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ((), []),
        (WISHES, [("m", "x"), ("b", "x")]),
        ((Wish("c", "base", "base"), *WISHES), [("c", "base"), ("c", "base")]),
        ((Wish("m", "x", "w"), Wish("a", "x", "y")), [("m", "w"), ("a", "w")]),
    ],
)
def test_full_weights_are_those_of_the_first_head_and_of_heads_that_agree_with_it(
    found: tuple[Wish, ...], kept: list[tuple[str, str]]
) -> None:
    chosen = fitting(found, model(adapter={"type": "Full"}))
    assert [(wish.head, wish.fallback) for wish in chosen] == kept
    assert len(choose(chosen, {"x"})) <= 1


@pytest.mark.parametrize(
    ("refused", "asked"),
    [(set(), ["x", "y"]), ({"y"}, ["x"]), ({"x"}, ["y"]), ({"x", "y"}, [])],
)
def test_a_pod_that_refuses_a_target_is_asked_for_what_its_head_serves(
    refused: set[str], asked: list[str]
) -> None:
    assert choose(WISHES, refused) == asked
