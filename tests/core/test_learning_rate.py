"""The learning rate of each step: warm-up, constant or falling, and never 0."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from tests.core.objects import run

from espalier.core.run.learning_rate import learning_rate_at

RATE = 1e-4
WARM = {"warmupSteps": 4}
# schedule of 10 steps with learningRate 1e-4; step; the share of the rate that it takes
SHARES: list[tuple[dict[str, Any] | None, int, float]] = [
    (None, 1, 1.0),
    (None, 10, 1.0),
    ({}, 1, 1.0),
    ({"type": "Constant"}, 10, 1.0),
    ({"type": "Constant", **WARM}, 1, 0.25),
    ({"type": "Constant", **WARM}, 4, 1.0),
    ({"type": "Constant", **WARM}, 5, 1.0),
    ({"type": "Linear"}, 1, 1.0),
    ({"type": "Linear"}, 6, 0.5),
    ({"type": "Linear"}, 10, 0.1),
    ({"type": "Linear", **WARM}, 3, 0.75),
    ({"type": "Linear", **WARM}, 5, 1.0),
    ({"type": "Linear", **WARM}, 8, 0.5),
    ({"type": "Linear", "minimum": "5e-5"}, 6, 0.75),
    ({"type": "Cosine"}, 1, 1.0),
    ({"type": "Cosine"}, 6, 0.5),
    ({"type": "Cosine"}, 10, (1 + math.cos(0.9 * math.pi)) / 2),
    ({"type": "Cosine", **WARM}, 2, 0.5),
    ({"type": "Cosine", "minimum": "5e-5"}, 6, 0.75),
    # A client's step that its run has no room for any more is as the last.
    ({"type": "Linear"}, 11, 0.1),
]


@pytest.mark.parametrize(("schedule", "step", "share"), SHARES)
def test_each_step_has_its_share_of_the_rate(
    schedule: dict[str, Any] | None, step: int, share: float
) -> None:
    given = {"learningRateSchedule": schedule} if schedule is not None else {}
    assert learning_rate_at(run(steps=10, **given).spec, step) == pytest.approx(RATE * share)


@pytest.mark.parametrize("type_", ["Linear", "Cosine"])
def test_a_falling_rate_falls_at_every_step_and_is_never_0(type_: str) -> None:
    spec = run(steps=200, learningRateSchedule={"type": type_, "warmupSteps": 5}).spec
    rates = [learning_rate_at(spec, step) for step in range(1, 201)]
    rising, falling = rates[:6], rates[5:]
    assert rising == sorted(rising)
    assert all(before > after > 0 for before, after in pairwise(falling))


def test_the_last_of_ten_million_steps_still_has_a_rate() -> None:
    spec = run(steps=10_000_000, learningRateSchedule={"type": "Cosine"}).spec
    assert learning_rate_at(spec, 10_000_000) > 0


@pytest.mark.parametrize("type_", ["Linear", "Cosine"])
def test_it_is_the_schedule_of_transformers(type_: str) -> None:
    torch, optimization = (pytest.importorskip(n) for n in ("torch", "transformers.optimization"))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    make = getattr(optimization, f"get_{type_.lower()}_schedule_with_warmup")
    theirs = make(optimizer, num_warmup_steps=0, num_training_steps=10)
    spec = run(steps=10, learningRateSchedule={"type": type_}).spec
    for step in range(1, 11):
        assert learning_rate_at(spec, step) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_steps_are_counted_from_one_and_a_run_without_a_rate_has_none() -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        learning_rate_at(run(learningRateSchedule={"type": "Linear"}).spec, 0)
    with pytest.raises(ValueError, match="no rate of its own"):
        learning_rate_at(run(driver="Client", learningRate=None).spec, 1)
