"""The loop against a gateway over real HTTP: what it sends, and how it goes on after trouble."""

from __future__ import annotations

import pytest
from tests.runner.bench import BRIEF, Bench, series

from espalier.client import RefusedError
from espalier.runner.run_end import UserError


async def test_a_run_takes_its_steps_and_ends(bench: Bench) -> None:
    await bench.drive()
    assert bench.gateway.kinds() == ["forward-backward", "optim-step"] * 3
    assert [step["checkpoint"] for step in bench.events("step")] == [
        "tiny-000001",
        "tiny-000002",
        "tiny-000003",
    ]
    assert bench.events("finished")[0]["step"] == 3


async def test_every_step_samples_the_checkpoint_that_it_trains_from(bench: Bench) -> None:
    await bench.drive()
    models = [sample["model"] for sample in bench.gateway.samples]
    assert models == [
        *["default/tiny@base"] * 2,
        *["default/tiny@tiny-000001"] * 2,
        *["default/tiny@tiny-000002"] * 2,
    ]


async def test_a_fork_samples_the_checkpoint_of_the_other_model_that_it_starts_from(
    bench: Bench,
) -> None:
    bench.gateway.checkpoint = "other-000007"
    bench.gateway.spec["steps"] = 1
    await bench.drive()
    assert bench.gateway.samples[0]["model"] == "default/tiny@other-000007"


async def test_a_sample_asks_for_a_group_with_tokens_and_no_seed(bench: Bench) -> None:
    await bench.drive()
    sample = bench.gateway.samples[0]
    assert (sample["n"], sample["temperature"], sample["max_tokens"]) == (4, 1.0, 4)
    assert sample["logprobs"] is True
    assert sample["return_token_ids"] is True
    assert "seed" not in sample


async def test_a_sample_ends_and_is_rendered_as_the_run_says(bench: Bench) -> None:
    said = {"stop": ["\n\n"], "stopTokenIds": [7], "chatTemplateKwargs": {"enable_thinking": False}}
    bench.gateway.spec |= {"steps": 1, "sampling": {"maxTokens": 4, **said}}
    await bench.drive()
    sample = bench.gateway.samples[0]
    assert (sample["stop"], sample["stop_token_ids"]) == (["\n\n"], [7])
    assert sample["chat_template_kwargs"] == {"enable_thinking": False}


async def test_the_trainer_gets_the_runs_hyperparameters(bench: Bench) -> None:
    bench.gateway.spec |= {
        "steps": 1,
        "loss": {"name": "ppo", "clipLow": "0.9", "clipHigh": "1.1"},
        "advantage": {"scale": "GroupStd"},
        "sampling": {"temperature": "0.7", "maxTokens": 4},
        "optimizer": {"weightDecay": "0.01", "gradientClipNorm": "1"},
    }
    await bench.drive()
    (gradients,) = bench.gateway.bodies("forward-backward")
    assert gradients["loss_fn"] == "ppo"
    assert gradients["loss_fn_config"] == {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}
    assert gradients["advantage_scale"] == "GroupStd"
    drawn = [sample for one in gradients["inputs"] for sample in one["samples"]]
    assert {sample["temperature"] for sample in drawn} == {0.7}
    assert gradients["group_size"] == 4
    assert [one["reward"] for one in gradients["inputs"]] == [1, 0, 1, 0] * 2
    (step,) = bench.gateway.bodies("optim-step")
    assert step["learning_rate"] == 1e-3
    assert (step["weight_decay"], step["grad_clip_norm"]) == (0.01, 1)
    assert (step["beta1"], step["beta2"], step["eps"]) == (0.9, 0.95, 1e-8)


async def test_each_step_says_which_tasks_it_was_sampled_from(bench: Bench) -> None:
    await bench.drive()
    used = [step["taskset"] for step in bench.gateway.bodies("optim-step")]
    assert [(one["size"], one["seed"]) for one in used] == [(8, 1)] * 3
    assert len({one["digest"] for one in used}) == 1


async def test_each_step_is_taken_at_the_rate_of_its_schedule(bench: Bench) -> None:
    bench.gateway.spec |= {"learningRateSchedule": {"type": "Linear", "warmupSteps": 1}, "steps": 3}
    await bench.drive()
    rates = [step["learning_rate"] for step in bench.gateway.bodies("optim-step")]
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4])


async def test_a_step_carries_metrics_cursor_and_rollouts(bench: Bench) -> None:
    await bench.drive()
    step = bench.gateway.bodies("optim-step")[0]
    assert step["metrics"]["rollout/reward/mean"] == 0.5
    assert step["metrics"]["group/dropped"] == 0
    assert (step["cursor"]["run_step"], step["cursor"]["next_task"]) == (1, 2)
    assert step["cursor"]["taskset"]["found"] == bench.events("tasks-opened")[0]["digest"]
    assert step["measured"] == {}
    assert len(step["rollouts"]) == 8
    assert {record["completion"] for record in step["rollouts"]} >= {"none"}
    assert all(record["trained"] for record in step["rollouts"])


async def test_the_rewards_of_a_step_are_figures_of_the_checkpoint_that_was_sampled(
    bench: Bench,
) -> None:
    await bench.drive()
    first, second, third = bench.gateway.bodies("optim-step")
    rewards = {"reward/mean": 0.5, "reward/std": 0.5, "reward/min": 0.0, "reward/max": 1.0}
    # The base, which the first step sampled, is no checkpoint.
    assert first["measured"] == {}
    assert second["measured"] == {"tiny-000001": rewards}
    assert third["measured"] == {"tiny-000002": rewards}


async def test_what_is_sampled_of_another_models_checkpoint_is_no_figure_of_ours(
    bench: Bench,
) -> None:
    bench.gateway.checkpoint = "origin-000007"
    bench.gateway.spec["steps"] = 1
    await bench.drive()
    (step,) = bench.gateway.bodies("optim-step")
    assert step["measured"] == {}
    assert step["metrics"]["rollout/reward/mean"] == 0.5


@pytest.mark.parametrize("answered", [0, 1, 2, 3, 5])
async def test_a_killed_runner_is_replaced_by_one_that_asks_what_it_would_have_asked(
    bench: Bench, answered: int
) -> None:
    bench.gateway.fail("chat", *[""] * answered, 409)
    with pytest.raises(RefusedError):
        await bench.drive()
    await bench.drive()
    assert bench.gateway.run_step == 3
    asked: dict[str, set[str]] = {}
    for sample in bench.gateway.samples:
        asked.setdefault(sample["model"], set()).add(sample["messages"][-1]["content"])
    # Two groups a step, whichever runner sampled them; and no task twice in six of eight.
    assert [len(prompts) for prompts in asked.values()] == [2, 2, 2]
    assert len(set.union(*asked.values())) == 6


async def test_gradients_of_a_killed_runner_are_dropped_before_the_step(bench: Bench) -> None:
    bench.gateway.pending = 1
    bench.gateway.spec["steps"] = 1
    await bench.drive()
    assert bench.gateway.kinds() == ["zero-grad", "forward-backward", "optim-step"]


async def test_lost_answers_never_take_a_step_twice(bench: Bench) -> None:
    for command in ("forward-backward", "optim-step"):
        bench.gateway.fail(command, "lose", 503, "drop", "lose")
    await bench.drive()
    assert bench.gateway.kinds() == ["forward-backward", "optim-step"] * 3
    assert bench.gateway.run_step == 3


async def test_groups_of_equal_rewards_are_dropped_whole_and_counted(bench: Bench) -> None:
    bench.gateway.spec |= {"steps": 1, "groupsPerStep": 8}
    bench.gateway.answer = lambda prompt, index: "none" if index or prompt > "2=" else prompt
    before = series()
    await bench.drive()
    assert {name: value - before[name] for name, value in series().items()} == {
        "steps": 1,
        "trained": 3,
        "dropped": 5,
        "rollouts": 32,
        "scored": 8,
        "in flight": 0,
    }
    (gradients,) = bench.gateway.bodies("forward-backward")
    assert [one["reward"] for one in gradients["inputs"]] == [1, 0, 0, 0] * 3
    (step,) = bench.gateway.bodies("optim-step")
    assert step["metrics"]["group/dropped"] == 5
    assert step["metrics"]["group/zero_variance_fraction"] == 5 / 8
    assert step["metrics"]["rollout/reward/mean"] == 3 / 32
    assert sum(record["trained"] for record in step["rollouts"]) == 12


async def test_groups_of_equal_rewards_are_trained_on_where_the_run_keeps_them(
    bench: Bench,
) -> None:
    bench.gateway.spec |= {"steps": 1, "groupFilter": {"zeroVariance": "Keep"}}
    first: list[str] = []
    bench.gateway.answer = lambda prompt, index: (
        prompt if index and prompt in (first or first.append(prompt) or first) else "none"
    )
    await bench.drive()
    assert len(bench.gateway.bodies("forward-backward")[0]["inputs"]) == 8


async def test_when_no_group_teaches_the_next_tasks_are_asked(bench: Bench) -> None:
    bench.gateway.spec["steps"] = 1
    calls = iter(range(100))
    bench.gateway.answer = lambda prompt, index: prompt if next(calls) >= 8 and index else "none"
    await bench.drive()
    asked = bench.asked()
    assert len(asked) == 4
    assert len(set(asked)) == 4
    (step,) = bench.gateway.bodies("optim-step")
    assert step["metrics"]["group/dropped"] == 2
    assert len(step["rollouts"]) == 16


async def test_fewer_groups_than_the_run_wants_end_it_with_both_numbers(bench: Bench) -> None:
    bench.gateway.spec |= {"groupFilter": {"minGroups": 2}}
    first: list[str] = []
    bench.gateway.answer = lambda prompt, index: (
        prompt if index and prompt in (first or first.append(prompt) or first) else "none"
    )
    with pytest.raises(UserError) as raised:
        await bench.drive(BRIEF)
    said = raised.value.problem.detail
    assert said == "in 3 rounds 1 of 6 groups teach, and groupFilter.minGroups is 2"
    assert bench.gateway.kinds() == []


async def test_rewards_that_never_differ_end_the_run_with_a_remedy(bench: Bench) -> None:
    bench.gateway.answer = lambda prompt, index: "none"
    bench.gateway.finish_reason = "length"
    with pytest.raises(UserError) as raised:
        await bench.drive(BRIEF)
    assert raised.value.problem.reason == "RewardsUninformative"
    assert "in 3 rounds" in raised.value.problem.detail
    assert "raise sampling.maxTokens" in raised.value.problem.remedy
    assert bench.gateway.kinds() == []


@pytest.mark.parametrize("command", ["forward-backward", "optim-step"])
async def test_a_rollback_in_mid_step_drops_the_step_and_goes_on_from_the_new_place(
    bench: Bench, command: str
) -> None:
    def rollback() -> None:
        bench.gateway.term = 2
        bench.gateway.pending = 0
        bench.gateway.checkpoint = "tiny-000001"

    def arm() -> None:
        bench.gateway.hooks[command] = rollback

    bench.gateway.step = bench.gateway.run_step = 2
    bench.gateway.checkpoint = "tiny-000002"
    arm()
    await bench.drive()
    assert bench.events("step-dropped")[0]["reason"] == "StaleTerm"
    assert bench.gateway.samples[-1]["model"] == "default/tiny@tiny-000001"
    assert [step["term"] for step in bench.events("step")] == [2]
    assert bench.gateway.run_step == 3


async def test_gradients_that_the_trainer_lost_are_dropped_and_the_step_is_begun_again(
    bench: Bench,
) -> None:
    def restart() -> None:
        bench.gateway.lost = True

    bench.gateway.spec |= {"steps": 1}
    bench.gateway.hooks["optim-step"] = restart
    await bench.drive()
    assert bench.events("step-dropped")[0]["reason"] == "GradientsLost"
    assert bench.gateway.kinds() == [
        "forward-backward",
        "zero-grad",
        "forward-backward",
        "optim-step",
    ]
