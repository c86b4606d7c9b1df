"""What holds for every environment: time, rewards, seeds, digests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.environments.talk import Model, session

from espalier.api.run.taskset import Taskset
from espalier.environments.digest import FIELD, Mark, taskset_digest
from espalier.environments.environment import play
from espalier.environments.errors import RolloutFailedError, UserError
from espalier.environments.open_environment import open_environment
from espalier.environments.tasks import Task, rollout_seed
from espalier.loop.session import Session

TASK = Task("source/name/0", ())


class Given:
    """An environment whose rollout is a test's."""

    size, digest, timeout_seconds = 1, "sha256:0", 0.05

    def __init__(self, reward: Any = 0.0, seconds: float = 0.0) -> None:
        self._reward, self._seconds = reward, seconds

    async def ready(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        pass

    def task(self, index: int) -> Task:
        return TASK

    async def rollout(self, task: Task, session: Session) -> float | None:
        with session.phase("moving"):
            await asyncio.sleep(self._seconds)
            if isinstance(self._reward, Exception):
                raise self._reward
        given: float | None = self._reward
        return given


@pytest.mark.parametrize(
    ("environment", "cause", "detail"),
    [
        (Given(seconds=5), "Timeout", "took longer than 0.05 s, during moving"),
        (Given(TimeoutError("of a call")), "Timeout", "during moving: of a call"),
        (Given(None), "Malformed", "its reward is None"),
        (Given(True), "Malformed", "its reward is True"),
        (Given("1"), "Malformed", "its reward is '1'"),
        (Given(float("nan")), "NotFinite", "nan"),
        (Given(float("-inf")), "NotFinite", "-inf"),
    ],
)
async def test_a_rollout_without_a_reward_fails_by_name(
    environment: Given, cause: str, detail: str
) -> None:
    with pytest.raises(RolloutFailedError) as caught:
        await play(environment, TASK, session(Model(lambda chat: "")))
    assert caught.value.cause == cause
    assert detail in caught.value.detail


async def test_a_reward_may_be_any_finite_number() -> None:
    assert await play(Given(-3), TASK, session(Model(lambda chat: ""))) == -3.0


def test_seeds_of_rollouts_differ_by_seed_task_and_rollout() -> None:
    seeds = {rollout_seed(s, t, r) for s in (0, 1) for t in ("a/1", "a/11") for r in range(8)}
    assert len(seeds) == 32
    # Written down: after an update a run that goes on must see the same tiles.
    assert rollout_seed(1, "game2048/target-128/0", 2) == 8294687289391229079


@pytest.mark.parametrize("source", ["game2048", "calculator"])
def test_the_digest_follows_seed_size_fields_and_prompt(source: str) -> None:
    def digest(fields: dict[str, Any], **changes: Any) -> str:
        spec = Taskset.model_validate({"seed": 1, source: fields, **changes})
        return open_environment(spec).digest

    found = [
        digest({}),
        digest({"maxTurns": 5}),
        digest({}, seed=2),
        digest({}, size=5),
        digest({}, systemPrompt="Be brief."),
    ]
    assert len(set(found)) == 5
    assert digest({}) == found[0]


def test_the_digest_of_tasks_tells_their_order_and_borders() -> None:
    lists: list[list[Any]] = [["a", "b"], ["b", "a"], ["ab"], ["a"], [], [["a", "b"]], [{"a": "b"}]]
    assert len({taskset_digest(one) for one in lists}) == len(lists)
    assert taskset_digest([{"a": 1, "b": 2}]) == taskset_digest([{"b": 2, "a": 1}])


SPEC = Taskset.model_validate({"seed": 1, "configMap": {"name": "tasks"}})
EDITED = Taskset.model_validate({"seed": 2, "configMap": {"name": "tasks"}})
MARK = Mark.of("run/1", SPEC, taskset_digest(["a"]))


@pytest.mark.parametrize(
    "now",
    [
        MARK,
        # Declared in another way: the change is meant.
        Mark.of("run/1", EDITED, taskset_digest(["b"])),
        Mark.of("run/2", SPEC, taskset_digest(["b"])),
    ],
)
def test_tasks_may_change_where_the_run_says_so(now: Mark) -> None:
    now.check({FIELD: MARK.wire()})
    now.check({})
    now.check({FIELD: "nothing that we wrote"})


def test_tasks_that_change_under_a_run_are_refused() -> None:
    now = Mark.of("run/1", SPEC, taskset_digest(["b"]))
    with pytest.raises(UserError) as caught:
        now.check({FIELD: MARK.wire()})
    assert caught.value.problem.reason == "TasksetChanged"
    assert MARK.found[:19] in caught.value.problem.detail
    assert "name them anew" in caught.value.problem.remedy


def test_a_taskset_with_answers_is_no_environment() -> None:
    with pytest.raises(UserError, match=r"taskset\.game2048"):
        open_environment(SPEC)
