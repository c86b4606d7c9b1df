"""The operator dies at any of its calls, before or after the effect: the outcome is the same.

A crash is followed by a new process that knows nothing; caches lag behind all the time.
"""

from __future__ import annotations

import pytest
from tests.simulation.virtual_time import run
from tests.simulation.world import Life, World, head_spec, model_spec, run_spec, world

# Crashing after every call takes a minute: each part takes every n-th.
PARTS = 4


async def story(w: World) -> None:
    """Train, roll back, branch, train on, return to Track, hold, go on."""

    def done(steps: int) -> bool:
        said = w.condition("TrainingRun", "digits", "Succeeded")["status"]
        return said == "True" and w.status("TrainingRun", "digits")["step"] == steps

    def serves(name: str) -> bool:
        ready = w.condition("CheckpointHead", "tiny", "Ready")["status"] == "True"
        return w.current("tiny") == name and ready

    await w.apply("TrainableModel", "tiny", model_spec())
    await w.apply("TrainingRun", "digits", run_spec("tiny", 2))
    await w.until(lambda: done(2) and serves("tiny-000002"), "trained")
    pin = head_spec("tiny", "Pin", "tiny-000001", onPin="Branch")
    await w.apply("CheckpointHead", "tiny", pin)
    await w.apply("TrainingRun", "digits", run_spec("tiny", 4))
    await w.until(lambda: done(4) and serves("tiny-000001"), "branched")
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track"))
    await w.until(lambda: serves("tiny-b2-000003"), "follows the branch")
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Pin", "tiny-000002"))
    await w.until(lambda: serves("tiny-000002"), "held")
    await w.apply("TrainingRun", "digits", run_spec("tiny", 5))
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track"))
    await w.until(lambda: done(5) and serves("tiny-b2-000004"), "went on")
    await w.until(lambda: not w.kubelet.pods("trainer"), "the trainer is freed")


async def tell(life: Life) -> tuple[dict[str, object], int]:
    """The outcome of the story, and how often the operator crashed."""
    async with world(life) as w:
        await story(w)
        return w.outcome(), w.crashes


@pytest.fixture(scope="module")
def undisturbed() -> tuple[dict[str, object], int]:
    """The outcome without a crash, and the number of calls that it takes."""
    life = Life()
    outcome, _ = run(tell(life))
    return outcome, life.calls


@pytest.mark.parametrize("part", range(PARTS))
def test_a_crash_after_any_call_changes_nothing_in_the_end(
    undisturbed: tuple[dict[str, object], int], part: int
) -> None:
    expected, calls = undisturbed
    for call in range(1 + part, calls + 1, PARTS):
        outcome, crashes = run(tell(Life(call, after_effect=True)))
        assert crashes == 1
        assert outcome == expected, f"crash after call {call}"


def test_a_crash_before_a_call_changes_nothing_in_the_end(
    undisturbed: tuple[dict[str, object], int],
) -> None:
    expected, calls = undisturbed
    # Before a call is after the one before, unless calls overlap: a sample is enough.
    for call in range(1, calls + 1, 7):
        outcome, crashes = run(tell(Life(call)))
        assert crashes == 1
        assert outcome == expected, f"crash before call {call}"


def test_the_outcome_has_both_branches(undisturbed: tuple[dict[str, object], int]) -> None:
    names = sorted(key.split("/")[1] for key in undisturbed[0] if key.startswith("Checkpoint "))
    assert names == [
        "tiny-000001",
        "tiny-000002",
        "tiny-b2-000002",
        "tiny-b2-000003",
        "tiny-b2-000004",
    ]


@pytest.mark.parametrize("lag", [0.3, 2.0])
def test_caches_that_lag_behind_change_nothing_in_the_end(
    undisturbed: tuple[dict[str, object], int], lag: float
) -> None:
    async def late() -> dict[str, object]:
        async with world(lag=lag) as w:
            await story(w)
            return w.outcome()

    assert run(late()) == undisturbed[0]


def test_a_leader_that_has_not_noticed_its_successor_changes_nothing_in_the_end(
    undisturbed: tuple[dict[str, object], int],
) -> None:
    async def both() -> dict[str, object]:
        async with world() as w:
            former = w.operate(Life(), lag=1.0)
            await story(w)
            former.cancel()
            await w.rest()
            return w.outcome()

    assert run(both()) == undisturbed[0]
