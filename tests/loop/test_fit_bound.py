"""What a fit has of what a declared run has, and how its run in Git binds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.loop.test_fit import TASKS, Digit, client, config, repeat, server
from tests.runner.standin import StandIn
from tests.runner.test_with_trainer import Passage, checkpoints, passage

from espalier import (
    ConfigurationError,
    Correction,
    Fit,
    FitConfig,
    Kl,
    Objective,
    RateSchedule,
    RefusedError,
    Sampling,
    Session,
)
from espalier.api.trainingrun import TrainingRun
from espalier.api.wire.declared import Declared
from espalier.core.run.declared import declared
from espalier.core.run.learning_rate import scheduled
from espalier.loop.minibatches import Uses

__all__ = ["passage", "server"]
SPEC: dict[str, Any] = {
    "modelRef": {"name": "tiny"},
    "driver": "Client",
    "steps": 3,
    "loss": {"name": "ppo", "clipHigh": "1.3", "aggregation": "TokenMean"},
    "learningRate": "1e-2",
    "learningRateSchedule": {"type": "Cosine", "warmupSteps": 1, "minimum": "1e-3"},
    "optimizer": {"beta1": "0.8", "gradientClipNorm": "1"},
    "advantage": {"scale": "GroupStd"},
    "kl": {"coefficient": "0.1", "reference": {"base": {}}},
    "groupSize": 2,
    "sampling": {"temperature": "0.7", "maxTokens": 4},
}
OPEN = FitConfig(steps=3, tasks_per_step=2)


def bound(**changes: Any) -> Declared:
    """What a client's run binds its commands to."""
    metadata = {"name": "run", "namespace": "default", "uid": "u", "generation": 1}
    spec = {**SPEC, **changes}
    found = declared(TrainingRun.model_validate({"metadata": metadata, "spec": spec}))
    assert found is not None
    return found


async def test_a_fit_takes_every_setting_that_it_leaves_open_from_its_run(
    passage: tuple[Passage, str], tmp_path: Path
) -> None:
    gateway, url = passage
    gateway.declared = bound()
    async with client(url) as trainer:
        # The trainer checks every command against the run.
        await Fit(trainer, TASKS, repeat, OPEN).fit_async()
    rows = [
        json.loads((path / "metrics.jsonl").read_text())
        for path in checkpoints(tmp_path / "weights")
    ]
    given = gateway.declared.learning_rate_schedule
    rates = [row["optimizer/learning_rate"] for row in rows]
    assert rates == pytest.approx([scheduled(1e-2, given, step) for step in (1, 2, 3)], rel=1e-12)
    assert rates[2] < rates[1]
    assert all(row["policy/reference_kl"] >= 0 for row in rows)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": 1e-3}, "learningRate"),
        ({"loss_fn": "cispo"}, "loss"),
        ({"objective": Objective(aggregation="TokenSum")}, "loss.aggregation"),
        ({"advantage_scale": "None"}, "advantage.scale"),
        ({"group": 4}, "groupSize"),
        ({"beta1": 0.9}, "optimizer.beta1"),
    ],
)
async def test_a_script_that_says_something_else_than_its_run_is_refused_with_both(
    passage: tuple[Passage, str], changes: dict[str, Any], said: str
) -> None:
    gateway, url = passage
    gateway.declared = bound()
    fit_config = FitConfig(steps=1, tasks_per_step=2, **changes)
    async with client(url) as trainer:
        with pytest.raises(RefusedError, match=rf"spec\.{said} of TrainingRun run is"):
            await Fit(trainer, TASKS, repeat, fit_config).fit_async()


def test_what_neither_declares_has_its_default_and_a_rate_has_none() -> None:
    free = Declared(run="run")
    with pytest.raises(ConfigurationError, match="learning_rate is not given"):
        OPEN.bound(free)
    found = FitConfig(steps=3, learning_rate=1e-5).bound(free)
    assert (found.group, found.loss_fn, found.objective) == (8, "importance_sampling", Objective())
    assert found.sampling == Sampling()
    assert found.rate_at(3) == 1e-5
    # Of an objective the run gives what the script does not.
    own = FitConfig(steps=3, objective=Objective(correction=Correction(mode="TokenMask"))).bound(
        bound()
    )
    assert own.objective.correction.mode == "TokenMask"
    assert (own.objective.aggregation, own.objective.kl) == (
        "TokenMean",
        Kl(coefficient=0.1, reference="Base"),
    )


async def test_a_script_has_what_a_declared_run_has(server: tuple[StandIn, str]) -> None:
    gateway, url = server
    objective = Objective(
        aggregation="SequenceMean", ratio_anchor="Trainer", entropy_coefficient=0.1
    )
    settings = config(
        steps=4,
        minibatches=2,
        loss_fn="ppo",
        objective=objective,
        advantage_estimator="LeaveOneOut",
        weight_decay=0.1,
        learning_rate_schedule=RateSchedule(type="Linear", warmup_steps=0, minimum=0.0, steps=4),
    )
    async with client(url) as trainer:
        await Fit(trainer, TASKS, repeat, settings).fit_async()
    batch = ["forward", *["forward-backward", "optim-step"] * 2]
    assert gateway.kinds() == batch * 2
    sent = gateway.bodies("forward-backward")[1]
    assert {name: sent[name] for name in ("aggregation", "entropy_coefficient")} == {
        "aggregation": "SequenceMean",
        "entropy_coefficient": 0.1,
    }
    assert (sent["advantage_estimator"], sent["ratio_anchor"]) == ("LeaveOneOut", "Trainer")
    steps = gateway.bodies("optim-step")
    assert [step["learning_rate"] for step in steps] == pytest.approx(
        [1e-3, 0.75e-3, 0.5e-3, 0.25e-3]
    )
    assert {step["weight_decay"] for step in steps} == {0.1}
    assert [len(step["rollouts"]) for step in steps] == [8, 0, 8, 0]
    assert [step["keep_rollouts"] for step in steps] == [True, False] * 2


def test_the_epochs_of_a_script_deal_groups_out_by_its_seed() -> None:
    assert config(minibatches=2, epochs=3, seed=7).uses == Uses(2, 3, 7)


async def test_a_fit_killed_between_two_minibatches_goes_on_with_the_same_samples(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server
    settings = config(steps=4, minibatches=2, epochs=2)
    # The second step's gradients are refused, which ends the fit.
    gateway.fail("forward-backward", "", 418)
    async with client(url) as trainer:
        with pytest.raises(RefusedError):
            await Fit(trainer, TASKS, repeat, settings).fit_async()
    assert gateway.run_step == 1
    async with client(url) as trainer:
        await Fit(trainer, TASKS, repeat, settings).fit_async()
    assert len(gateway.samples) == 8
    first, second, *again = gateway.bodies("forward-backward")
    prompts = [
        [item["samples"][0]["prompt_token_ids"] for item in body["inputs"]]
        for body in (first, second, *again)
    ]
    # The second epoch deals the same groups out anew.
    assert sorted(prompts[2] + prompts[3]) == sorted(prompts[0] + prompts[1])
    assert prompts[0] != prompts[1]


async def test_a_validation_counts_the_samples_of_a_task_together(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server

    async def one_in_four(task: Digit, session: Session) -> float:
        await session.sample([{"role": "user", "content": f"{task.answer}="}])
        # Task 0 is solved by one of its four rollouts, task 1 by none.
        return float(task.id == "0" and session.rollout.rollout_idx == 3)

    settings = config(
        val_only=True,
        validation_group=4,
        pass_at_k=(1, 4),
        validation_sampling=Sampling(max_tokens=4, temperature=1.0),
    )
    async with client(url) as trainer:
        fit = Fit(trainer, TASKS, one_in_four, settings, validation=TASKS[:2])
        seen = await fit.fit_async()
    assert seen["val/pass@1"] == pytest.approx(0.125)
    assert seen["val/pass@4"] == pytest.approx(0.5)
    assert seen["val/mean_reward"] == pytest.approx(0.125)
    assert len(gateway.samples) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pass_at_k": (1, 2)}, "pass_at_k has 2, and a validation has 1"),
        ({"validation_group": 4}, "samples greedily"),
        ({"minibatches": 2, "advantage_scale": "BatchStd"}, "choose GroupStd, or use epochs"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        config(**changes)
