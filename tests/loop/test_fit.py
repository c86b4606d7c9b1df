"""fit over real HTTP: order, resumption, validation, trackers; and over a real trainer."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp.test_utils import TestServer
from safetensors.torch import load_file
from tests.runner.standin import StandIn
from tests.runner.test_with_trainer import Passage, checkpoints, passage

from espalier import (
    ConfigurationError,
    ConvergedWarning,
    DatumTensors,
    Fit,
    FitConfig,
    InvalidRequestError,
    JsonLines,
    NotFoundError,
    Objective,
    Patience,
    Rollout,
    Sampling,
    Session,
    Streaming,
    TrainingClient,
    TrajectoryPayload,
    TrajectorySample,
    track,
)
from espalier.loop.custom_loss import LossDatum
from espalier.tracking.trackers import TrackerWarning

__all__ = ["passage"]
QUICK = Patience(deadline=30.0, attempt=30.0, first_delay=0.001, longest_delay=0.01)
SAMPLING = Sampling(max_tokens=4)


@dataclass(frozen=True)
class Digit:
    id: str
    answer: str


TASKS = [Digit(str(digit), str(digit)) for digit in range(4)]


async def repeat(task: Digit, session: Session) -> float:
    turn = await session.sample([{"role": "user", "content": f"{task.answer}="}])
    # Every other one right, so that a group always teaches.
    return float(turn.text == task.answer and session.rollout.rollout_idx % 2 == 0)


@pytest.fixture
async def server() -> AsyncIterator[tuple[StandIn, str]]:
    gateway = StandIn()
    async with TestServer(gateway.app()) as running:
        yield gateway, str(running.make_url("/"))


def client(url: str) -> TrainingClient:
    return TrainingClient("default/tiny", base_url=url, token="t", patience=QUICK)


def config(**changes: Any) -> FitConfig:
    small = {"steps": 3, "learning_rate": 1e-3, "group": 2, "tasks_per_step": 2}
    return FitConfig(**{**small, "sampling": SAMPLING, **changes})


async def test_a_fit_takes_its_steps_and_goes_on_where_another_ended(
    server: tuple[StandIn, str], tmp_path: Path
) -> None:
    gateway, url = server
    async with client(url) as trainer:
        await Fit(trainer, TASKS, repeat, config(steps=2)).fit_async()
        assert gateway.kinds() == ["forward-backward", "optim-step"] * 2
        # A process that was killed between its two commands left gradients behind.
        gateway.pending = 1
        tracker = JsonLines(tmp_path / "metrics.jsonl")
        await Fit(trainer, TASKS, repeat, config(steps=3), trackers=[tracker]).fit_async()
    assert gateway.kinds()[4:] == ["zero-grad", "forward-backward", "optim-step"]
    first, second = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert first["config"]["model"] == "default/tiny"
    assert first["config"]["sampling"]["max_tokens"] == 4
    assert second["step"] == 3
    assert second["metrics"]["rollout/reward/mean"] == 0.5
    cursor = gateway.bodies("optim-step")[-1]["cursor"]
    assert cursor["next_task"] == 6
    assert cursor["fit"] == first["config"]


async def test_fit_inside_a_running_loop_names_the_other_method(
    server: tuple[StandIn, str],
) -> None:
    _, url = server
    async with client(url) as trainer:
        with pytest.raises(RuntimeError, match="await fit_async"):
            Fit(trainer, TASKS, repeat, config()).fit()


async def test_validation_alone_takes_no_step(server: tuple[StandIn, str]) -> None:
    gateway, url = server
    async with client(url) as trainer:
        fit = Fit(trainer, TASKS, repeat, config(val_only=True), validation=TASKS[:2])
        seen = await fit.fit_async()
        fit.shutdown()
    assert gateway.kinds() == []
    assert seen["val/reward/mean"] == 1.0
    assert [sample["temperature"] for sample in gateway.samples] == [0.0, 0.0]


async def test_a_resume_moves_the_head_first(server: tuple[StandIn, str]) -> None:
    gateway, url = server
    async with client(url) as trainer:
        await Fit(trainer, TASKS, repeat, config(steps=2)).fit_async()
        await Fit(trainer, TASKS, repeat, config(steps=1, resume_from="tiny-000001")).fit_async()
    assert gateway.head == "tiny-000001"


async def test_a_resume_that_crashed_goes_on_from_its_own_newer_checkpoint(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server
    async with client(url) as trainer:
        await Fit(trainer, TASKS, repeat, config(steps=2)).fit_async()
        resumed = config(steps=3, resume_from="tiny-000001")
        await Fit(trainer, TASKS, repeat, resumed).fit_async()
        assert gateway.moves == ["tiny-000001"]
        # Started again, with more steps to take as well: its third step is not undone.
        for steps in (3, 4):
            again = config(steps=steps, resume_from="tiny-000001")
            await Fit(trainer, TASKS, repeat, again).fit_async()
        assert gateway.moves == ["tiny-000001"]
        assert gateway.run_step == 4
        # Another wish is another one.
        await Fit(trainer, TASKS, repeat, config(steps=4, resume_from="tiny-000002")).fit_async()
    assert gateway.moves == ["tiny-000001", "tiny-000002"]


async def test_a_resume_that_crashed_before_its_first_step_moves_the_head_once(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server
    async with client(url) as trainer:
        await Fit(trainer, TASKS, repeat, config(steps=1)).fit_async()
        # The trainer is there already, as after a crash that followed the move.
        await Fit(trainer, TASKS, repeat, config(steps=1, resume_from="tiny-000001")).fit_async()
    assert gateway.moves == []


async def test_a_resume_from_nothing_is_refused_by_name_and_nothing_is_trained(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server
    async with client(url) as trainer:
        fit = Fit(trainer, TASKS, repeat, config(resume_from="tiny-000009"))
        with pytest.raises(NotFoundError, match="tiny-000009"):
            await fit.fit_async()
    assert gateway.kinds() == []


@pytest.mark.parametrize("val_only", [True, False], ids=["validation", "training"])
async def test_precomputed_advantages_leave_reward_figures_and_validation_leaves_them(
    server: tuple[StandIn, str], val_only: bool
) -> None:
    gateway, url = server
    seen: list[Rollout] = []

    async def advised(task: Digit, session: Session) -> float:
        turn = await session.sample([{"role": "user", "content": f"{task.answer}="}])
        session.rollout.advantages[0] = [0.5] * len(turn.token_ids)
        seen.append(session.rollout)
        return 0.25

    settings = config(steps=1, use_precomputed_advantage=True, val_only=val_only)
    async with client(url) as trainer:
        found = await Fit(trainer, TASKS, advised, settings, validation=TASKS[:2]).fit_async()
    prefix = "val" if val_only else "rollout"
    assert found[f"{prefix}/reward/mean"] == 0.25
    assert found[f"{prefix}/reward/std"] == 0.0
    assert ("val/advantage/missing_fraction" in found, gateway.kinds() == []) == (False, val_only)
    assert all(r.advantages == {0: [0.5] * len(r.turns[0].token_ids)} for r in seen)


async def test_rewards_and_validations_are_figures_of_the_checkpoint_that_was_sampled(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server
    async with client(url) as trainer:
        settings = config(steps=3, validate_every=1, val_before_train=True)
        await Fit(trainer, TASKS, repeat, settings, validation=TASKS[:2]).fit_async()
    first, second, third = gateway.bodies("optim-step")
    assert first["measured"] == {}
    assert first["metrics"]["rollout/reward/mean"] == 0.5
    for step, name in ((second, "tiny-000001"), (third, "tiny-000002")):
        (found,) = step["measured"].values()
        assert [*step["measured"]] == [name]
        assert (found["reward/mean"], found["eval/reward/mean"]) == (0.5, 1.0)
    # The samples for a step are the trainer's checkpoint's, whatever the head serves.
    asked = [sample["model"].partition("@")[2] for sample in gateway.samples]
    assert [*dict.fromkeys(asked)] == ["base", "tiny-000001", "tiny-000002", "tiny-000003"]


async def test_rewards_that_never_differ_end_the_fit_with_the_reason(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server

    async def constant(task: Digit, session: Session) -> float:
        await repeat(task, session)
        return 0.0

    async def broken(task: Digit, session: Session) -> float:
        raise KeyError("tool")

    async with client(url) as trainer:
        with pytest.raises(ConfigurationError, match="in 2 rounds every group had equal rewards"):
            await Fit(trainer, TASKS, constant, config(rounds=2)).fit_async()
        with pytest.raises(ConfigurationError, match="failed rollout, the first: KeyError"):
            await Fit(trainer, TASKS, broken, config(rounds=2)).fit_async()
    assert gateway.kinds() == []


async def test_a_fit_ends_early_when_the_model_has_nothing_more_to_learn(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server

    async def learnt(task: Digit, session: Session) -> float:
        reward = await repeat(task, session)
        return reward if gateway.kinds().count("optim-step") < 2 else 1.0

    async with client(url) as trainer:
        with pytest.warns(ConvergedWarning, match=r"after 2 of 5 steps: in 2 rounds .*mean 1\)"):
            last = await Fit(trainer, TASKS, learnt, config(steps=5, rounds=2)).fit_async()
    assert last["rollout/reward/mean"] == 0.5
    assert gateway.kinds() == ["forward-backward", "optim-step"] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"group": 1}, "group is 1"),
        ({"val_only": True}, "validation is empty"),
    ],
)
async def test_settings_that_cannot_work_are_refused_before_anything_is_sampled(
    server: tuple[StandIn, str], changes: dict[str, Any], message: str
) -> None:
    gateway, url = server
    async with client(url) as trainer:
        with pytest.raises(ConfigurationError, match=message):
            Fit(trainer, TASKS, repeat, config(**changes))
    assert gateway.samples == []


class Broken:
    """A tracker whose service is down."""

    def start(self, config: Any) -> None:
        raise ConnectionError("no route to the tracker")

    def log(self, step: int, metrics: Any) -> None:
        raise ConnectionError("no route to the tracker")

    def finish(self) -> None:
        raise ConnectionError("no route to the tracker")


async def test_a_tracker_that_fails_warns_and_stops_nothing(
    server: tuple[StandIn, str], tmp_path: Path
) -> None:
    gateway, url = server
    file = JsonLines(tmp_path / "metrics.jsonl")
    async with client(url) as trainer:
        fit = Fit(trainer, TASKS, repeat, config(), trackers=[Broken(), file])
        with pytest.warns(TrackerWarning, match=r"Broken.start failed: ConnectionError: no route"):
            await fit.fit_async()
    assert gateway.kinds().count("optim-step") == 3
    steps = [
        json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().split("\n") if line
    ]
    assert [row.get("step") for row in steps] == [None, 1, 2, 3]


async def test_a_fit_may_be_run_again_with_the_same_file(
    server: tuple[StandIn, str], tmp_path: Path
) -> None:
    _, url = server
    file = JsonLines(tmp_path / "metrics.jsonl")
    async with client(url) as trainer:
        for steps in (1, 2):
            await Fit(trainer, TASKS, repeat, config(steps=steps), trackers=[file]).fit_async()
    assert steps_in(tmp_path / "metrics.jsonl") == [None, 1, None, 2]


def steps_in(file: Path) -> list[int | None]:
    """The step of each line; None for a configuration."""
    return [json.loads(line).get("step") for line in file.read_text().split("\n") if line]


def test_an_unknown_tracker_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    assert len(track(["console", "file"], tmp_path)) == 2
    with pytest.raises(ConfigurationError, match="wandbb; there are: console, file, wandb"):
        track(["wandbb"], tmp_path)


# --- over the real trainer ------------------------------------------------------------------------


def digits(groups: int, size: int, *, ids: bool) -> list[TrajectoryPayload]:
    rng = random.Random(5)
    return [
        TrajectoryPayload(
            samples=[
                TrajectorySample(
                    prompt_token_ids=list(f"{group}=".encode()),
                    output_token_ids=list(rng.randbytes(3)),
                    output_logprobs=[-2.0, -3.0, -1.5],
                )
            ],
            reward=rng.random(),
            group_id=f"g{group}" if ids else None,
        )
        for group in range(groups)
        for _ in range(size)
    ]


def importance_sampling(
    data: list[DatumTensors], logprobs: list[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    groups: dict[int | None, list[float]] = {}
    for datum in data:
        groups.setdefault(datum.group_idx, []).append(datum.reward)
    loss = torch.zeros(())
    for datum, new in zip(data, logprobs, strict=True):
        rewards = groups[datum.group_idx]
        advantage = datum.reward - sum(rewards) / len(rewards)
        ratio = torch.exp(new - torch.tensor(datum.sampling_logprobs))
        loss = loss - (ratio * advantage * torch.tensor(datum.mask)).sum()
    return loss, {"ratio_sum": 1.0}


def moments(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Adam's first moments, by parameter."""
    saved = load_file(checkpoint / "optimizer.safetensors")
    return {name: value for name, value in saved.items() if "exp_avg" in name and "sq" not in name}


async def test_a_custom_loss_learns_what_the_built_in_one_does(
    passage: tuple[Passage, str], tmp_path: Path
) -> None:
    _, url = passage
    inputs = digits(3, 4, ids=False)
    async with client(url) as trainer:
        for own in (False, True):
            if own:
                await trainer.forward_backward_custom(inputs, importance_sampling, group_size=4)
            else:
                await trainer.forward_backward(inputs, group_size=4)
            # Too small a step to change the weights: both gradients are of the same ones.
            await trainer.optim_step(learning_rate=1e-12, beta1=0.5)
    first, second = (moments(path) for path in checkpoints(tmp_path / "weights"))
    # Adam's first moment is half the gradient, then half of itself and half the next gradient.
    for name, moment in first.items():
        torch.testing.assert_close(2 * second[name] - moment, 2 * moment, rtol=1e-5, atol=1e-7)
    assert max(float(moment.abs().max()) for moment in first.values()) > 1e-3


async def test_a_fit_by_a_loss_of_its_own_learns_what_one_by_the_built_in_does(
    passage: tuple[Passage, str], tmp_path: Path
) -> None:
    gateway, url = passage

    def loss(data: list[LossDatum], logprobs: list[torch.Tensor]) -> Any:
        rows = zip(data, logprobs, strict=True)
        ratios = [(torch.exp(lp - torch.tensor(d.sampling_logprobs)), d) for d, lp in rows]
        return sum(-(ratio * torch.tensor(d.advantages)).sum() for ratio, d in ratios), {"seen": 1}

    seen = []
    for own in (None, loss):
        # The same samples, of weights that so small a step does not change.
        gateway.says = lambda prompt, index: prompt[0] if index % 2 == 0 else "9"
        small = config(steps=len(seen) + 1, learning_rate=1e-12, beta1=0.5)
        async with client(url) as trainer:
            fit = Fit(trainer, TASKS[:2], repeat, small, loss=own)
            seen.append(await fit.fit_async())
            assert fit.settings()["loss_fn"] == ("importance_sampling" if own is None else "custom")
    assert seen[1]["seen"] == 1
    first, second = (moments(path) for path in checkpoints(tmp_path / "weights"))
    for name, moment in first.items():
        torch.testing.assert_close(2 * second[name] - moment, 2 * moment, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "schedule", "said"),
    [
        ({"loss_fn": "ppo"}, None, "leave loss_fn out"),
        ({"objective": Objective(aggregation="TokenMean")}, None, "leave objective out"),
        ({}, Streaming(2), "loss is of a whole step"),
    ],
)
def test_what_has_no_meaning_beside_a_loss_of_ones_own_is_refused(
    settings: dict[str, Any], schedule: Any, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Fit(
            TrainingClient("default/tiny", base_url="http://localhost:1", token="t"),
            TASKS,
            repeat,
            config(**settings),
            schedule=schedule,
            loss=lambda data, logprobs: (logprobs[0].sum(), {}),
        )


async def test_groups_by_id_learn_the_same_in_any_order(passage: tuple[Passage, str]) -> None:
    _, url = passage
    inputs = digits(3, 4, ids=True)
    shuffled = random.Random(1).sample(inputs, len(inputs))
    by_position = [payload.model_copy(update={"group_id": None}) for payload in inputs]
    losses = []
    async with client(url) as trainer:
        for batch, size in ((by_position, 4), (inputs, None), (shuffled, 4)):
            done = await trainer.forward_backward(batch, group_size=size)
            losses.append(done.metrics["loss:sum"])
            await trainer.zero_grad()
        await trainer.forward_backward(shuffled)
    assert losses[1:] == pytest.approx([losses[0]] * 2, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: [b[0].model_copy(update={"group_id": None}), *b[1:]], r"inputs\[0\].group_id"),
        (lambda b: b[1:], "group 'g0' has 3 inputs, and group_size is 4"),
    ],
)
async def test_groups_that_do_not_fit_are_refused_by_name(
    passage: tuple[Passage, str], change: Any, message: str
) -> None:
    _, url = passage
    async with client(url) as trainer:
        with pytest.raises(InvalidRequestError, match=message):
            await trainer.forward_backward(change(digits(3, 4, ids=True)), group_size=4)
        assert (await trainer.state()).pending == 0


async def test_a_loss_that_does_not_depend_on_the_logprobs_is_refused(
    passage: tuple[Passage, str],
) -> None:
    _, url = passage
    async with client(url) as trainer:
        with pytest.raises(ValueError, match="depends on the log-probs"):
            await trainer.forward_backward_custom(
                digits(1, 2, ids=False), lambda data, logprobs: (torch.zeros(()), {})
            )
        assert (await trainer.state()).pending == 0


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (Sampling(top_p=0.8), "sampling has top_p 0.8"),
        (Sampling(top_k=5, temperature=0.7), "sampling has top_k 5"),
        (Sampling(temperature=0.0), "sampling has temperature 0"),
    ],
)
def test_samples_that_no_policy_would_draw_are_not_trained_on(
    sampling: Sampling, said: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        config(sampling=sampling)
    assert str(refused.value).startswith(f"{said}: ")
    assert "train with cross_entropy" in str(refused.value)
    # Neither validation nor a loss without log-probs compares policies.
    assert config(sampling=Sampling(top_p=1.0, top_k=-1), validation_sampling=sampling)
    assert config(sampling=sampling, loss_fn="cross_entropy")
