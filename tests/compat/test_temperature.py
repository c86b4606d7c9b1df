"""The same samples at another temperature than 1, trained every way that there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.compat.clients import EACH_VERSION, NEWEST, drive, environment
from tests.compat.stage import NAMESPACE, TRAINER, Stage

from espalier import GatewayClient, Job, RefusedError, Sampling, Session, TrainingClient, rewards
from espalier.api.trainingrun import TrainingRunSpec
from espalier.api.wire.gradients import DatumTensors
from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.rewards import Given, Part, Rewards
from espalier.rewards.lengths import LengthRules
from espalier.rewards.scored import Written
from espalier.runner.journal import Journal
from espalier.runner.loop import Loop
from espalier.runner.scorer_spec import Match
from espalier.runner.task_protocol import Message, Task, Tasks
from espalier.runner.task_source import AnsweredTasks
from espalier.runner.waiting import Waiting

pytestmark = pytest.mark.timeout(900)

QUESTION = "1+1?"
GROUP = 4
# So small that the weights stay: every way starts from the same policy.
RATE = 1e-30
EQUAL = 1e-5

Gradient = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Asked:
    id: str = "task-a"


class Question:
    """The one task of a declared run."""

    size = 1
    scorer = Match(extraction="Whole")

    def task(self, index: int) -> Task:
        return Task(f"test/{index}", (Message("user", QUESTION),))

    def reference(self, index: int) -> str:
        return ""

    def answer(self, index: int) -> None:
        return None


class Letters:
    """Scores as the scenario of HUD's client does."""

    async def ready(self) -> dict[str, object]:
        return {}

    async def give(self, question: rewards.Question, written: Written) -> Given:
        return Given(reward_of(written.text))

    async def close(self) -> None:
        pass


def reward_of(text: str) -> float:
    return (ord(text[0]) - 97) / 25


def importance(
    data: list[DatumTensors], logprobs: list[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    """importance_sampling, as a caller writes it."""
    mean = sum(datum.reward for datum in data) / len(data)
    losses = [
        -((current - torch.tensor(datum.sampling_logprobs)).exp() * (datum.reward - mean)).sum()
        for datum, current in zip(data, logprobs, strict=True)
    ]
    return torch.stack(losses).sum(), {}


async def play(task: Asked, session: Session) -> float:
    turn = await session.sample([{"role": "user", "content": QUESTION}])
    return reward_of(turn.text)


@pytest.fixture
def taken(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> list[Gradient]:
    """The gradients of every optimizer step, as it finds them."""
    stage.repeat = GROUP
    compute: Any = stage.engine("arith").state.compute
    found: list[Gradient] = []
    propose = compute.propose

    def proposed(*given: Any) -> Any:
        parameters = compute.policy.parameters.items()
        found.append({n: p.grad.clone() for n, p in parameters if p.grad is not None})
        return propose(*given)

    monkeypatch.setattr(compute, "propose", proposed)
    return found


def difference(one: Gradient, other: Gradient) -> float:
    assert one.keys() == other.keys()
    largest = max(float(value.abs().max()) for value in other.values())
    return max(float((one[name] - other[name]).abs().max()) for name in other) / largest


async def by_huds_client(version: str, stage: Stage, home: Path, **sampling: Any) -> dict[str, Any]:
    variables = environment(stage.url, TRAINER, home)
    return dict(
        await drive(version, "tempered", variables, model="arith", sampling=sampling, rate=RATE)
    )


async def by_our_client(stage: Stage, way: str) -> None:
    async with TrainingClient("arith", base_url=stage.url, token=TRAINER) as client:
        sampling = Sampling(max_tokens=8, temperature=0.7)
        job = Job(client, play, group=GROUP, sampling=sampling, max_concurrent=1)
        batch = (await job.run([Asked()])).trajectories()
        if way == "forgetful":
            batch = [forgotten(one) for one in batch]
        if way == "custom":
            await client.forward_backward_custom(batch, importance)
            await client.optim_step(learning_rate=RATE)
        else:
            await client.step(batch, learning_rate=RATE)


def forgotten(trajectory: TrajectoryPayload) -> TrajectoryPayload:
    """Tokens and log-probs alone, and these not quite as the gateway gave them."""
    bare = [
        sample.model_copy(
            update={
                "temperature": None,
                "output_logprobs": [round(logprob, 6) for logprob in sample.output_logprobs],
            }
        )
        for sample in trajectory.samples
    ]
    return trajectory.model_copy(update={"samples": bare, "trace_id": None})


async def by_a_declared_run(stage: Stage) -> None:
    run = {
        "modelRef": {"name": "arith"},
        "driver": "Client",
        "loss": {"name": "importance_sampling"},
        "learningRate": f"{RATE}",
        "steps": stage.steps("arith") + 1,
        "groupSize": GROUP,
        "groupsPerStep": 1,
        "sampling": {"temperature": "0.7", "maxTokens": 8},
        "taskset": {"seed": 1, "configMap": {"name": "tasks"}},
    }
    await stage.apply("TrainingRun", "arith", run)

    def letters(spec: TrainingRunSpec, tasks: Tasks) -> Rewards:
        lengths = LengthRules(spec.sampling.max_tokens)
        return Rewards([Part("letters", Letters())], tasks.answer, lengths)

    journal = Journal("default/arith")
    async with GatewayClient(stage.url, "arith", TRAINER) as client:
        await Loop(
            client,
            (NAMESPACE, "arith"),
            open_tasks=lambda spec: AnsweredTasks(Question()),
            open_rewards=letters,
            journal=journal,
            waiting=Waiting(journal, 0.1),
        ).drive()


@pytest.mark.parametrize("version", EACH_VERSION)
async def test_every_way_to_train_on_the_same_samples_takes_the_same_gradient(
    stage: Stage, taken: list[Gradient], tmp_path: Path, version: str
) -> None:
    assert await by_huds_client(version, stage, tmp_path, temperature=0.7) == {
        "runs": 1,
        "ids": 2,
        "bare": 3,
        "custom": 4,
    }
    await by_our_client(stage, "step")
    await by_our_client(stage, "custom")
    await by_our_client(stage, "forgetful")
    await by_a_declared_run(stage)
    assert {body.get("temperature") for body in stage.sampled} == {0.7}
    first, *others = taken
    forgetful = others.pop(5)
    assert len(others) == 6
    assert max(difference(first, other) for other in others) < EQUAL
    # The same tokens, taken for samples at 1 because nobody said how they were drawn.
    assert difference(first, forgetful) > 0.05


async def test_samples_of_another_distribution_are_refused_every_way(
    stage: Stage, taken: list[Gradient], tmp_path: Path
) -> None:
    told = await by_huds_client(NEWEST, stage, tmp_path, top_p=0.8)
    assert told.keys() == {"runs", "ids", "bare", "custom"}
    for status, said in told.values():
        assert status == 422
        assert "inputs[0].samples[0]: it was sampled with top_p 0.8" in said
        assert "sample for training with temperature alone" in said
    async with TrainingClient("arith", base_url=stage.url, token=TRAINER) as client:
        job = Job(client, play, group=GROUP, sampling=Sampling(top_p=0.8))
        batch = (await job.run([Asked()])).trajectories()
        with pytest.raises(RefusedError, match="it was sampled with top_p"):
            await client.step(batch, learning_rate=RATE)
    assert not taken
