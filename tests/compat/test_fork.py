"""A script that forks a model, and samples or trains the fork with its next line."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.compat.clients import NEWEST, drive, environment
from tests.compat.stage import TRAINER, Stage

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("sampled", [False, True])
async def test_the_first_call_is_held_until_the_forks_pods_take_it(
    stage: Stage, tmp_path: Path, sampled: bool
) -> None:
    variables = environment(stage.url, TRAINER, tmp_path)
    source = stage.uid("arith")
    told = dict(await drive(NEWEST, "forked", variables, source=source, sampled=sampled))
    assert told == {"step": [1, "arith-two-000001", 2 if sampled else 1]}
    assert (stage.steps("arith-two"), stage.pending("arith-two")) == (1, 0)
    assert stage.steps("arith") == 0
