"""Whatever happens to the operator on the way, a story ends the same.

A bounded sample of what ``python -m tests.simulation.report`` plays in full: the operator dies at
moments spread over the undisturbed run, and storms lose, repeat and reorder events and calls.
``make test-all`` plays more of it than ``make test``.
"""

from __future__ import annotations

import functools

import pytest
from tests.simulation.campaign import Ending, Trial, compare, play
from tests.simulation.report import trials_of
from tests.simulation.scenarios import SCENARIOS, branch
from tests.simulation.virtual_time import run
from tests.simulation.weather import Weather
from tests.simulation.world import world

KILLS = [3, pytest.param(30, marks=pytest.mark.exhaustive)]
SEEDS = [2, pytest.param(20, marks=pytest.mark.exhaustive)]


@functools.cache
def undisturbed(name: str) -> Ending:
    return play(Trial(name))


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_story_keeps_the_laws_and_writes_nothing_once_all_is_done(name: str) -> None:
    assert undisturbed(name).faults == []


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_an_operator_that_dies_at_any_moment_changes_nothing_in_the_end(
    name: str, kills: int
) -> None:
    moments = len(undisturbed(name).moments)
    for trial in trials_of(name, undisturbed(name), max(1, moments // kills)):
        assert compare(undisturbed(name), trial) == []


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_lost_repeated_and_late_events_and_failing_calls_change_nothing_in_the_end(
    name: str, seeds: int
) -> None:
    for seed in range(seeds):
        assert compare(undisturbed(name), Trial(name, seed=seed)) == []


def test_a_runner_that_ended_while_nobody_listened_to_its_trainer_is_not_started_again() -> None:
    assert compare(undisturbed("two-models"), Trial("two-models", seed=101)) == []


def test_a_head_whose_model_is_gone_does_not_look_at_its_rollouts_for_ever() -> None:
    assert compare(undisturbed("model-deleted"), Trial("model-deleted", seed=5)) == []


def test_a_trial_is_played_again_by_its_seed() -> None:
    trial = Trial("branch", seed=4)
    first, second = play(trial), play(trial)
    assert (first.steps, first.moments, first.crashes) == (
        second.steps,
        second.moments,
        second.crashes,
    )
    assert trial.command == "python -m tests.simulation.report --scenario branch --seed 4"


def test_an_end_that_differs_is_shown_with_what_plays_it_again() -> None:
    other = Ending(outcome={**undisturbed("importer").outcome, "births": {"Job tiny-import": 3}})
    assert compare(other, Trial("importer", kill=5)) == [
        "/births/Job tiny-import: 3 became 2   [python -m tests.simulation.report --scenario "
        "importer --kill 5]",
        "/births/Deployment tiny-rollout: null became 1   [python -m tests.simulation.report "
        "--scenario importer --kill 5]",
    ]


@pytest.mark.parametrize("lag", [0.3, 2.0])
def test_caches_that_lag_behind_change_nothing_in_the_end(lag: float) -> None:
    async def late() -> dict[str, object]:
        async with world(weather=Weather(lag)) as w:
            await branch(w)
            await w.settle(5.0)
            return w.outcome()

    assert run(late()) == undisturbed("branch").outcome
