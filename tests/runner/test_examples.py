"""The examples: accepted by a real API server as they are, and right in what they ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from dev.apiserver import ApiServer, ApiServerError
from tests.runner.around import surroundings
from tests.runner.scoring import reward

from espalier.api.trainingrun import TrainingRun
from espalier.client import Completion
from espalier.loop import LossDatum
from espalier.runner.custom_loss.declared_loss import open_loss
from espalier.runner.heldout import beyond_size
from espalier.runner.open_rewards import open_rewards
from espalier.runner.open_taskset import open_tasks
from espalier.runner.task_protocol import Tasks

ARITHMETIC = Path(__file__).parents[2] / "examples" / "arithmetic"


def load(name: str) -> Any:
    return yaml.safe_load((ARITHMETIC / name).read_text())


@pytest.fixture
def run() -> TrainingRun:
    return TrainingRun.model_validate(load("run.yaml"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The ConfigMap as the runner sees it."""
    for key, text in load("tasks.yaml")["data"].items():
        (tmp_path / key).write_text(text)
    return tmp_path


@pytest.fixture
def tasks(run: TrainingRun, directory: Path) -> Tasks:
    return open_tasks(run.spec.taskset, directory)


def test_the_example_is_accepted_as_a_whole_and_each_head_after_it(
    apiserver: ApiServer, namespace: str
) -> None:
    apiserver.kubectl("apply", "-n", namespace, "-k", str(ARITHMETIC))
    for head in ("rollback.yaml", "branch.yaml", "head.yaml"):
        apiserver.kubectl("apply", "-n", namespace, "-f", str(ARITHMETIC / head))
    kinds = "trainablemodels,trainingruns,checkpointheads,configmaps,persistentvolumeclaims"
    found = apiserver.kubectl("get", kinds, "-n", namespace, "-o", "name").split()
    for name in ("model.espalier.dev/arith", "run.espalier.dev/arith-20", "configmap/sums"):
        assert any(name in one for one in found), found


def test_the_user_of_the_example_may_sample_and_train_and_no_more(
    apiserver: ApiServer, namespace: str
) -> None:
    apiserver.kubectl("apply", "-n", namespace, "-f", str(ARITHMETIC / "user.yaml"))
    user = f"--as=system:serviceaccount:{namespace}:arith-user"

    def may(verb: str, kind: str, *more: str) -> bool:
        # can-i says no by its exit code.
        try:
            apiserver.kubectl("auth", "can-i", verb, kind, *more, "-n", namespace, user)
        except ApiServerError:
            return False
        return True

    assert may("get", "trainablemodels.espalier.dev")
    assert may("create", "trainablemodels.espalier.dev", "--subresource=sample")
    assert may("update", "trainingruns.espalier.dev")
    assert not may("update", "checkpointheads.espalier.dev")
    assert not may("get", "secrets")


def test_the_run_asks_distinct_sums_and_pays_for_the_right_number(tasks: Tasks) -> None:
    asked = [tasks.task(index).messages[0].content for index in range(tasks.size)]
    assert tasks.size == len(set(asked)) == 320
    for index, question in enumerate(asked):
        assert question.endswith("? Answer with just the number.")
        left, right = question.removeprefix("What is ").split("?")[0].split(" + ")
        assert reward(tasks, index, f"{left} + {right} = {int(left) + int(right)}.") == 1
        assert reward(tasks, index, f"{int(left) + int(right) + 1}") == 0


def test_64_sums_and_more_are_held_out(run: TrainingRun, directory: Path, tasks: Tasks) -> None:
    assert run.spec.taskset is not None
    held = beyond_size(run.spec.taskset, directory / "tasks.jsonl", seed=1001, size=64)
    trained = {tasks.task(index).messages for index in range(tasks.size)}
    asked = {held.tasks.task(index).messages for index in held.indices}
    assert len(asked) == 64
    assert not asked & trained


def test_the_run_never_asks_a_sum_twice(run: TrainingRun, tasks: Tasks) -> None:
    assert run.spec.steps * run.spec.groups_per_step <= tasks.size


async def test_the_run_with_a_loss_is_accepted_and_has_a_gradient(
    apiserver: ApiServer, namespace: str
) -> None:
    apiserver.kubectl("apply", "-n", namespace, "-f", str(ARITHMETIC / "loss.yaml"))
    modules, declared = yaml.safe_load_all((ARITHMETIC / "loss.yaml").read_text())
    spec = TrainingRun.model_validate(declared).spec
    assert spec.loss is not None
    assert spec.loss.custom_ref is not None
    loss = open_loss(spec.loss.custom_ref, lambda name, key: modules["data"][key])
    # One token is likelier by half than it was, the other as likely.
    sample = LossDatum(
        reward=1.0,
        traj_idx=0,
        logprobs=[-1.0, -1.0],
        sampling_logprobs=[-1.4, -1.0],
        mask=[1.0, 1.0],
        advantages=[1.0, 1.0],
    )
    weights, metrics = await loss.differentiate([sample])
    assert weights == [[0.0, pytest.approx(0.5)]]
    assert metrics["loss/clipped_fraction"] == 0.5
    assert metrics["loss/custom"] == pytest.approx(-(1.28 + 1) / 2)


async def test_the_run_with_rewards_is_accepted_and_pays_as_it_says(
    apiserver: ApiServer, namespace: str, directory: Path
) -> None:
    apiserver.kubectl("apply", "-n", namespace, "-f", str(ARITHMETIC / "rewards.yaml"))
    modules, declared = yaml.safe_load_all((ARITHMETIC / "rewards.yaml").read_text())
    texts = {f"arith-rewards/{key}": text for key, text in modules["data"].items()}
    spec = TrainingRun.model_validate(declared).spec
    tasks = open_tasks(spec.taskset, directory)
    answer = str(tasks.answer(0))
    group = [
        Completion(text, (1,), tuple(range(length)), (-0.5,) * length, "stop")
        for text, length in ((answer, 2), (f"Sorry, it is {answer}", 28), ("none", 32))
    ]
    async with open_rewards(spec, tasks, surroundings(modules=texts)) as rewards:
        right, wordy, wrong = await rewards.score(0, tasks.task(0), group)
    assert right.parts == {"right": 1, "brief": 1, "apology": 0, "overlong": 0}
    assert wordy.parts == {"right": 1, "brief": 0.25, "apology": 1, "overlong": -0.5}
    assert wrong.parts == {"right": 0, "brief": 1, "apology": 0, "overlong": -1}
    assert right.advantage is not None
    assert wordy.advantage is not None
    assert wrong.advantage is not None
    assert right.advantage > max(wordy.advantage, wrong.advantage)
