"""The stories of heads on the whole operator, and again with a crash early on."""

from __future__ import annotations

from typing import Any

import pytest
from tests.simulation.heads import STORIES
from tests.simulation.life import Life
from tests.simulation.virtual_time import run
from tests.simulation.world import world


async def tell(name: str, life: Life) -> dict[str, Any]:
    async with world(life) as w:
        await STORIES[name](w)
        await w.settle(5.0)
        return w.outcome()


@pytest.mark.parametrize("name", STORIES)
def test_a_story_of_heads_ends_as_it_should_whenever_the_operator_crashed(name: str) -> None:
    life = Life()
    undisturbed = run(tell(name, life))
    for tenth in (3, 6, 9):
        assert run(tell(name, Life(life.steps * tenth // 10))) == undisturbed
