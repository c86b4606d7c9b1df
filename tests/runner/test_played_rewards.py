"""What a played rollout is worth: what its environment pays, under the run's own rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.runner.standin import spec

from espalier.api.run.taskset import Taskset
from espalier.api.trainingrun import TrainingRunSpec
from espalier.client.completion import Completion
from espalier.environments.open_environment import open_environment
from espalier.rewards import Failure, Given, Rewards
from espalier.rewards.scored import Scored
from espalier.runner import heldout
from espalier.runner.open_taskset import open_taskset
from espalier.runner.played_rewards import Played
from espalier.runner.run_end import UserError
from espalier.runner.task_source import PlayedTasks

CALCULATOR: dict[str, Any] = {"seed": 1, "size": 4, "calculator": {}}


def turn(finish: str = "stop") -> Completion:
    return Completion("7", (1,), (2, 3), (-0.5, -0.5), finish)


def opened(**changes: Any) -> tuple[Rewards, Any]:
    run = TrainingRunSpec.model_validate(spec(**{"taskset": CALCULATOR, **changes}))
    environment = open_environment(Taskset.model_validate(CALCULATOR))

    def none(*_: Any) -> Any:
        raise AssertionError("nothing but the environment is asked")

    return PlayedTasks(environment).rewards(run, none), environment


async def scored(*played: Played, **changes: Any) -> list[Scored]:
    rewards, environment = opened(**changes)
    assert await rewards.ready() == {}
    return await rewards.score(0, environment.task(0), played)


async def test_the_reward_is_what_the_environment_paid() -> None:
    (one,) = await scored(Played((turn(), turn()), Given(3.5)))
    assert one == Scored(3.5, {"taskset": 3.5})


async def test_a_cut_turn_is_a_cut_rollout() -> None:
    cut = Played((turn("length"), turn()), Given(1.0))
    (dropped,) = await scored(cut, overlong={"policy": "Drop"})
    assert dropped.leaves_out
    (masked,) = await scored(cut, overlong={"policy": "Mask"})
    assert (masked.masked, masked.reward) == (True, 1.0)
    (nothing,) = await scored(cut, overlong={"policy": "ZeroReward"})
    assert nothing.reward == 0


async def test_a_rollout_that_failed_is_worth_what_on_error_says() -> None:
    failed = Played((turn(),), Given(None, Failure.of("Died", "its server ended")))
    (one,) = await scored(failed)
    assert (one.reward, one.failures[0].cause) == (None, "Died")
    (zero,) = await scored(failed, taskset={**CALCULATOR, "onError": "Zero"})
    assert (zero.reward, zero.failures[0].cause) == (0, "Died")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rewards": [{"name": "own", "environment": {}}]}, "rewards: the taskset is played"),
        ({"lengthPenalty": {"coefficient": "1", "targetTokens": 8}}, "lengthPenalty: the taskset"),
        ({"overlong": {"policy": "SoftPenalty", "bufferTokens": 2}}, "overlong.policy: the"),
    ],
    ids=["rewards", "length penalty", "soft penalty"],
)
def test_what_measures_one_completion_is_refused_by_name(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError) as caught:
        opened(**changes)
    assert caught.value.problem.reason == "RewardInvalid"
    assert named in caught.value.problem.detail
    assert caught.value.problem.remedy


def test_a_played_run_is_evaluated_on_tasks_with_answers(tmp_path: Path) -> None:
    inline = [{"id": str(n), "prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(3)]
    wanted = Taskset.model_validate({"seed": 2, "size": 3, "inline": inline})
    training = Taskset.model_validate(CALCULATOR)
    assert heldout.declared(training, wanted, tmp_path).indices == (0, 1, 2)
    # By expressions as well, none of which the run trains on; even with its own seed.
    for seed in (training.seed, training.seed + 1):
        others = training.model_copy(update={"seed": seed, "size": 4})
        found = heldout.declared(training, others, tmp_path)
        asked = {found.tasks.task(index).messages for index in found.indices or ()}
        own = open_taskset(training, tmp_path)
        assert len(asked) == 4
        assert asked.isdisjoint(own.task(index).messages for index in range(own.size))
