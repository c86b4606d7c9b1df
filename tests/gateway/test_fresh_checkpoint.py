"""What optim-step says about the checkpoint that it committed."""

from __future__ import annotations

import pytest
from tests.gateway.world import World, digest

from espalier.core.head.head_request import pin
from espalier.gateway.routes.fresh_checkpoint import promotion
from espalier.gateway.world.world import NamespacedName

NEW, OLD, LATER = digest("c3"), digest("a1"), digest("d4")
GATE = {"metric": "reward/mean", "min": "0.5"}


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def model(world: World) -> NamespacedName:
    return world.model("arith")


def ask(world: World, model: NamespacedName) -> str | None:
    return promotion(world.served, model, "arith-000003", NEW)


def test_open_before_there_is_a_head(world: World, model: NamespacedName) -> None:
    assert ask(world, model) is None


def test_open_while_the_head_serves_an_ancestor(world: World, model: NamespacedName) -> None:
    world.head(model, OLD, step=2)
    assert ask(world, model) is None


def test_served_once_the_head_serves_its_digest(world: World, model: NamespacedName) -> None:
    world.head(model, NEW, step=3)
    assert ask(world, model) == "Served"


def test_served_when_the_head_went_past_it_in_the_same_term(
    world: World, model: NamespacedName
) -> None:
    world.checkpoint(model, "arith-000003", NEW, step=3)
    world.head(model, LATER, step=4)
    assert ask(world, model) == "Served"


def test_not_served_by_a_later_step_of_another_term(world: World, model: NamespacedName) -> None:
    world.checkpoint(model, "arith-000003", NEW, step=3)
    world.head(model, LATER, step=4, term=2)
    assert ask(world, model) is None


@pytest.mark.parametrize("on_pin", ["Pause", "Branch", "Continue"])
def test_pinned_while_the_head_holds_another(
    world: World, model: NamespacedName, on_pin: str
) -> None:
    world.head(model, OLD, agreed=pin("arith-000001", on_pin, 2))
    assert ask(world, model) == "Pinned"


def test_served_when_the_pinned_one_is_this_one(world: World, model: NamespacedName) -> None:
    world.head(model, NEW, agreed=pin("arith-000003", "Branch", 2))
    assert ask(world, model) == "Served"


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (None, None),
        ({"reward/mean": "0.4"}, "Gated"),
        ({}, "Gated"),
        ({"reward/mean": "0.5"}, None),
    ],
)
def test_gated_once_its_metrics_are_there_and_do_not_pass(
    world: World, model: NamespacedName, metrics: dict[str, str] | None, expected: str | None
) -> None:
    world.head(model, OLD, gate=GATE)
    world.checkpoint(model, "arith-000003", NEW, step=3, metrics=metrics)
    assert ask(world, model) == expected
