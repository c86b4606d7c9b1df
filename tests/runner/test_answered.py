"""Every source as an environment: tasks with answers are one turn, scored in the worker."""

from __future__ import annotations

from typing import Any

import pytest
from tests.environments.talk import Model, played
from tests.runner.scoring import reward

from espalier.api.run.taskset import Taskset
from espalier.environments.errors import RolloutFailedError, UserError
from espalier.runner.answered import AnsweredEnvironment
from espalier.runner.open_taskset import open_played, open_tasks
from espalier.runner.taskset_digest import taskset_used

SUMS: dict[str, Any] = {
    "seed": 1,
    "inline": [{"id": "two", "prompt": "1+1=", "answer": "2"}],
    "answerExtraction": "LastNumber",
}


async def test_a_task_with_an_answer_is_one_turn_and_its_score() -> None:
    environment = open_played(Taskset.model_validate(SUMS))
    try:
        facts = await environment.ready()
        assert set(facts) == {"landlock", "seccomp"}
        model = Model(lambda chat: "It is 2")
        paid, talk = await played(environment, model)
        assert (paid, talk.rollout.stop_reason, len(talk.rollout.turns)) == (1, "", 1)
        assert model.heard[0][0] == [{"role": "user", "content": "1+1="}]
        assert (await played(environment, Model(lambda chat: "3")))[0] == 0
        tasks = open_tasks(Taskset.model_validate(SUMS))
        assert environment.digest == taskset_used(Taskset.model_validate(SUMS), tasks).digest
        assert reward(tasks, 0, "2") == 1
    finally:
        await environment.close()


async def test_a_score_that_cannot_be_had_ends_the_rollout_with_the_scorers_cause() -> None:
    numbers = {"dataset": "prime_factorization"}
    environment = open_played(Taskset.model_validate({"seed": 1, "reasoningGym": numbers}))
    try:
        await environment.ready()
        with pytest.raises(RolloutFailedError) as caught:
            await played(environment, Model(lambda chat: "<answer>two times two</answer>"))
        assert caught.value.cause == "Raised"
    finally:
        await environment.close()


async def test_a_played_source_is_opened_as_it_is() -> None:
    environment = open_played(Taskset.model_validate({"seed": 1, "calculator": {}}))
    assert not isinstance(environment, AnsweredEnvironment)
    assert environment.task(0).id == "calculator/3x3/0"


def test_no_taskset_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="taskset names no source"):
        open_played(None)
