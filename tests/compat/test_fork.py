"""A script that forks a model and trains the fork with its next line."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.compat.clients import NEWEST, drive, environment
from tests.compat.stage import TRAINER, Stage

pytestmark = pytest.mark.timeout(900)


async def test_the_first_training_call_is_held_until_the_forks_trainer_takes_it(
    stage: Stage, tmp_path: Path
) -> None:
    variables = environment(stage.url, TRAINER, tmp_path)
    told = dict(await drive(NEWEST, "forked", variables, model="arith"))
    assert told == {"step": [1, "arith-two-000001"]}
    assert (stage.steps("arith-two"), stage.pending("arith-two")) == (1, 0)
    assert stage.steps("arith") == 0
