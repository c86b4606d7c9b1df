"""When a save waits for the operator to make its Checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.api.manifests import CHECKPOINT
from tests.gateway.world import World

from espalier.gateway.tinker.saves import is_made


@pytest.mark.parametrize(
    ("there", "made"),
    [
        ((), False),
        (("m-000001",), False),
        (("m-000002",), True),
        # It was made, and was deleted since: the save says so, and waits for nothing.
        (("m-000003",), True),
        # Of another branch, another model.
        (("m-b2-000003",), False),
        (("m-x-000003",), False),
    ],
)
def test_it_waits_until_that_or_a_later_one_of_its_branch_is_there(
    there: Sequence[str], made: bool
) -> None:
    world = World()
    model = world.model("m")
    for name in there:
        world.put("Checkpoint", name, spec=CHECKPOINT["spec"])
    assert is_made(world.served, model, "m-000002") == made
