"""The loop against a gateway over real HTTP: what it sends, and how it goes on after trouble."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from prometheus_client import REGISTRY
from tests.runner.around import judge_at, surroundings
from tests.runner.standin import StandIn

from espalier.api.run.taskset import Taskset
from espalier.api.trainingrun import TrainingRunSpec
from espalier.client import DeadlineError, GatewayClient, Patience, RefusedError
from espalier.client.errors import TOO_LONG
from espalier.process import JsonFormatter
from espalier.rewards import Rewards
from espalier.runner import heldout
from espalier.runner.custom_loss.declared_loss import open_loss
from espalier.runner.journal import Journal
from espalier.runner.loop import Limits, Loop
from espalier.runner.open_rewards import open_rewards
from espalier.runner.open_taskset import open_tasks
from espalier.runner.run_end import UserError, WaitError
from espalier.runner.scoring import landlock, seccomp
from espalier.runner.scoring.process import COMMAND
from espalier.runner.task_protocol import Tasks
from espalier.runner.task_source import AnsweredTasks, TaskSource
from espalier.runner.waiting import Waiting

PATIENCE = Patience(deadline=60.0, attempt=60.0, first_delay=0.001, longest_delay=0.01)
BRIEF = Limits(rounds=3, hold_seconds=0.05, settle_seconds=0.05)


class Bench:
    """A stand-in, the loop that drives its run, and what the loop wrote to its journal."""

    def __init__(self, gateway: StandIn, url: str, tasks: Path) -> None:
        self.gateway = gateway
        self.folder = tasks
        self.opened: list[Taskset | None] = []
        self.worker: Sequence[str] = COMMAND
        # What of a taskset's files this process finds.
        self.mounted: str | None = None
        self.mounted_modules: frozenset[str] | None = None
        # By ConfigMap and key, and the address of every Service.
        self.modules: dict[str, str] = {}
        self.services = ""
        self._url = url
        self._tasks = tasks
        self._stream = io.StringIO()

    async def drive(self, limits: Limits | None = None, patience: Patience = PATIENCE) -> None:
        """A runner process, from its start to its end."""
        journal = Journal("default/run")
        async with (
            self._logged(),
            GatewayClient(self._url, "default/tiny", "secret", patience=patience) as client,
        ):
            loop = Loop(
                client,
                ("default", "run"),
                open_tasks=self._open,
                open_rewards=self._open_rewards,
                open_loss=lambda ref: open_loss(ref, surroundings(modules=self.modules).module),
                journal=journal,
                waiting=Waiting(journal, poll_seconds=0.001),
                open_held_out=lambda run, wanted: heldout.of_evaluation(run, wanted, self.folder),
                mounted=self.mounted,
                modules=self.mounted_modules,
                limits=limits,
            )
            await loop.drive()

    @asynccontextmanager
    async def _logged(self) -> AsyncIterator[None]:
        """Meanwhile the runner's log goes to the stream."""
        handler = logging.StreamHandler(self._stream)
        handler.setFormatter(JsonFormatter())
        logger = logging.getLogger("espalier.runner")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The journal's lines of one kind."""
        lines = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [line for line in lines if line["event"] == name]

    def asked(self) -> list[str]:
        """The prompts, in the order that they came."""
        return [sample["messages"][-1]["content"] for sample in self.gateway.samples]

    def _open(self, spec: Taskset | None) -> TaskSource:
        self.opened.append(spec)
        return AnsweredTasks(open_tasks(spec, self._tasks))

    def _open_rewards(self, spec: TrainingRunSpec, tasks: Tasks) -> Rewards:
        around = surroundings(
            modules=self.modules,
            services=self.services,
            judge=judge_at(self._url),
            command=self.worker,
        )
        return open_rewards(spec, tasks, around)


def series() -> dict[str, float]:
    """Some of what Prometheus is told of runners in this process."""
    found = {
        "steps": REGISTRY.get_sample_value("espalier_runner_steps_total"),
        "rollouts": REGISTRY.get_sample_value("espalier_runner_rollouts_total"),
        "scored": REGISTRY.get_sample_value("espalier_runner_reward_duration_seconds_count"),
        "in flight": REGISTRY.get_sample_value("espalier_runner_rollouts_in_flight"),
    }
    for outcome in ("trained", "dropped"):
        labels = {"outcome": outcome}
        found[outcome] = REGISTRY.get_sample_value("espalier_runner_groups_total", labels)
    return {name: value or 0.0 for name, value in found.items()}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    rows = [json.dumps({"prompt": f"{digit}=", "answer": str(digit)}) for digit in range(8)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(rows))
    gateway = StandIn()
    async with TestServer(gateway.app()) as running:
        yield Bench(gateway, str(running.make_url("/")), tmp_path)


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


Hold = Callable[[StandIn, bool], None]


def _suspend(gateway: StandIn, held: bool) -> None:
    gateway.suspended = held


def _pause(gateway: StandIn, held: bool) -> None:
    gateway.paused = held


def _reassign(gateway: StandIn, held: bool) -> None:
    gateway.run = "another/uid" if held else "run/6f1f9c1e"


@pytest.mark.parametrize(
    ("hold", "reason"),
    [(_suspend, "Suspended"), (_pause, "Paused"), (_reassign, "NotAssigned")],
)
async def test_a_held_run_waits_and_then_goes_on(bench: Bench, hold: Hold, reason: str) -> None:
    hold(bench.gateway, True)
    reads = iter(range(100))

    def release() -> None:
        if next(reads) == 3:
            hold(bench.gateway, False)
        else:
            bench.gateway.hooks["run"] = release

    bench.gateway.hooks["run"] = release
    await bench.drive()
    assert [wait["reason"] for wait in bench.events("waiting")] == [reason]
    assert bench.gateway.run_step == 3


@pytest.mark.parametrize(
    ("hold", "reason"),
    [(_suspend, "Suspended"), (_pause, "Paused"), (_reassign, "NotAssigned")],
)
async def test_no_wait_is_without_end(bench: Bench, hold: Hold, reason: str) -> None:
    hold(bench.gateway, True)
    with pytest.raises(WaitError) as raised:
        await bench.drive(BRIEF)
    assert raised.value.problem.reason == reason


async def test_a_pin_in_mid_step_holds_the_run_and_its_gradients_are_dropped_later(
    bench: Bench,
) -> None:
    bench.gateway.spec["steps"] = 1
    bench.gateway.hooks["optim-step"] = lambda: _pause(bench.gateway, True)

    def release() -> None:
        bench.gateway.hooks["run"] = lambda: _pause(bench.gateway, False)

    bench.gateway.hooks["run"] = release
    await bench.drive()
    assert bench.gateway.kinds() == [
        "forward-backward",
        "zero-grad",
        "forward-backward",
        "optim-step",
    ]


async def test_a_run_that_is_held_for_its_logprobs_in_mid_step_waits_for_the_edit(
    bench: Bench,
) -> None:
    bench.gateway.paused_for = "LogprobsMisaligned"
    bench.gateway.spec["steps"] = 1
    bench.gateway.hooks["optim-step"] = lambda: _pause(bench.gateway, True)

    def release() -> None:
        bench.gateway.hooks["run"] = lambda: _pause(bench.gateway, False)

    bench.gateway.hooks["run"] = release
    await bench.drive()
    assert bench.events("waiting")[0]["reason"] == "LogprobsMisaligned"
    assert bench.gateway.run_step == 1


async def test_edits_of_the_run_take_effect_at_the_next_step(bench: Bench) -> None:
    def edit() -> None:
        bench.gateway.spec |= {"learningRate": "5e-4", "groupSize": 2, "steps": 4}

    bench.gateway.hooks["optim-step"] = edit
    await bench.drive()
    steps = bench.gateway.bodies("optim-step")
    assert [step["learning_rate"] for step in steps] == [1e-3, 5e-4, 5e-4, 5e-4]
    gradients = bench.gateway.bodies("forward-backward")
    assert [body["group_size"] for body in gradients] == [4, 2, 2, 2]


async def test_the_taskset_is_opened_again_only_when_it_is_edited(bench: Bench) -> None:
    def edit() -> None:
        bench.gateway.spec |= {"taskset": {**bench.gateway.spec["taskset"], "seed": 2}}

    bench.gateway.hooks["optim-step"] = edit
    await bench.drive()
    assert [spec.seed for spec in bench.opened if spec] == [1, 2]


async def test_a_name_or_a_grant_that_is_not_there_yet_is_waited_for(bench: Bench) -> None:
    bench.gateway.fail("chat", 404)
    bench.gateway.fail("run", 401, 403)
    await bench.drive()
    assert [wait["reason"] for wait in bench.events("waiting")] == [
        "Status401",
        "Status403",
        "Status404",
    ]
    assert bench.gateway.run_step == 3


@pytest.mark.parametrize("route", ["chat", "forward-backward", "optim-step"])
async def test_a_server_error_costs_the_step_and_not_the_run(bench: Bench, route: str) -> None:
    bench.gateway.fail(route, 500, 500)
    await bench.drive()
    assert bench.events("waiting")[0]["reason"] == "Status500"
    assert bench.gateway.run_step == 3


async def test_a_step_that_fails_again_and_again_ends_the_runner(bench: Bench) -> None:
    bench.gateway.fail("optim-step", *[500] * 10000)
    with pytest.raises(WaitError, match="Status500"):
        await bench.drive(BRIEF)
    assert bench.gateway.run_step == 0


async def test_a_request_that_can_never_succeed_is_the_users_to_mend(bench: Bench) -> None:
    bench.gateway.fail("forward-backward", 422)
    with pytest.raises(UserError) as raised:
        await bench.drive()
    assert raised.value.problem.reason == "Status422"
    assert raised.value.problem.remedy == "Mend it"


async def test_a_run_that_is_over_at_the_gateway_is_over(bench: Bench) -> None:
    bench.gateway.active = False
    await bench.drive()
    assert bench.gateway.kinds() == []


async def test_a_gateway_that_stays_away_ends_the_runner_by_its_deadline(bench: Bench) -> None:
    bench.gateway.fail("state", *[503] * 1000)
    with pytest.raises(DeadlineError):
        await bench.drive(patience=Patience(deadline=0.05, first_delay=0.001, longest_delay=0.01))


EXECUTING = (sys.executable, "-P", "-m", "tests.runner.hostile", "alone", "all")
HANGING = "while True: pass"


def _one_answer_hangs(prompt: str, index: int) -> str:
    """Every task's first answer is right, but for one that never ends."""
    if prompt == "2=" and not index:
        return HANGING
    return f"reward = {float(not index)}"


def _scored(bench: Bench, policy: str, **changes: object) -> None:
    bench.worker = EXECUTING
    taskset = {**bench.gateway.spec["taskset"], "onError": policy, "scoreTimeoutSeconds": 2}
    bench.gateway.spec |= {"taskset": taskset, "steps": 1, "groupsPerStep": 8, **changes}
    bench.gateway.answer = _one_answer_hangs


@pytest.mark.parametrize("zero_variance", ["Keep", "Drop"])
async def test_a_group_with_an_answer_that_cannot_be_scored_is_dropped_and_named(
    bench: Bench, zero_variance: str
) -> None:
    _scored(bench, "DropGroup", groupFilter={"zeroVariance": zero_variance})
    await bench.drive()
    (gradients,) = bench.gateway.bodies("forward-backward")
    assert [one["reward"] for one in gradients["inputs"]] == [1, 0, 0, 0] * 7
    (step,) = bench.gateway.bodies("optim-step")
    assert step["metrics"]["group/dropped"] == 1
    assert step["metrics"]["rollout/scorer_errors"] == 1
    assert step["metrics"]["rollout/scorer_errors_timeout"] == 1
    assert step["metrics"]["rollout/reward/mean"] == pytest.approx(7 / 31)
    (error,) = bench.events("scorer-error")
    assert error["task"] == "configmap/digits/tasks.jsonl/2"
    assert (error["cause"], error["count"]) == ("Timeout", 1)


async def test_on_error_zero_trains_on_it_as_on_a_wrong_answer(bench: Bench) -> None:
    _scored(bench, "Zero", groupFilter={"zeroVariance": "Keep"})
    await bench.drive()
    (gradients,) = bench.gateway.bodies("forward-backward")
    assert sorted(one["reward"] for one in gradients["inputs"]) == [0] * 25 + [1] * 7
    (step,) = bench.gateway.bodies("optim-step")
    assert step["metrics"]["rollout/scorer_errors_timeout"] == 1
    assert step["metrics"]["rollout/reward/mean"] == 7 / 32


async def test_on_error_fail_ends_the_run_and_names_the_task(bench: Bench) -> None:
    _scored(bench, "Fail")
    with pytest.raises(UserError) as raised:
        await bench.drive()
    assert raised.value.problem.reason == "ScorerFailed"
    assert "task configmap/digits/tasks.jsonl/2: Timeout" in raised.value.problem.detail
    assert bench.gateway.kinds() == []


async def test_when_every_group_is_dropped_the_run_ends_and_says_why(bench: Bench) -> None:
    _scored(bench, "DropGroup")
    bench.gateway.answer = lambda prompt, index: "exit()" if not index else "reward = 1.0"
    with pytest.raises(UserError) as raised:
        await bench.drive(BRIEF)
    assert raised.value.problem.reason == "RewardsUninformative"
    assert "24 of 24 groups dropped for scorer errors" in raised.value.problem.detail
    assert "onError, of the taskset" in raised.value.problem.remedy
    assert len(bench.events("round-without-signal")) == 2


async def test_what_confines_the_scorers_is_on_record(bench: Bench) -> None:
    await bench.drive()
    (opened,) = bench.events("tasks-opened")
    assert opened["size"] == 8
    assert opened["seccomp"] is seccomp.supported()
    assert opened["landlock"] == landlock.version()


async def test_a_prompt_beyond_the_context_is_passed_over_counted_and_named(
    bench: Bench, tmp_path: Path
) -> None:
    bench.gateway.spec |= {"steps": 1, "groupsPerStep": 8}
    bench.gateway.context = 4
    rows = [json.dumps({"prompt": f"{n}=", "answer": str(n)}) for n in range(8)]
    rows[3] = json.dumps({"id": "long", "prompt": "much too long", "answer": "3"})
    (tmp_path / "tasks.jsonl").write_text("\n".join(rows))
    await bench.drive()
    assert len(bench.gateway.bodies("forward-backward")[0]["inputs"]) == 7 * 4
    (step,) = bench.gateway.bodies("optim-step")
    assert step["metrics"]["group/prompt_too_long"] == 1
    (skipped,) = bench.events("prompt-too-long")
    assert skipped["task"] == "long"
    assert "maximum context length is 4" in skipped["detail"]


@pytest.mark.parametrize("policy", ["Drop", "Fail"])
async def test_a_prompt_beyond_the_limit_of_the_run_is_dropped_or_ends_it_by_name(
    bench: Bench, tmp_path: Path, policy: str
) -> None:
    rows = [json.dumps({"prompt": f"{n}=", "answer": str(n)}) for n in range(8)]
    rows[3] = json.dumps({"id": "long", "prompt": "3=" + "?" * 20, "answer": "3"})
    (tmp_path / "tasks.jsonl").write_text("\n".join(rows))
    bench.gateway.spec |= {"steps": 1, "groupsPerStep": 8}
    bench.gateway.spec["limits"] = {"maxPromptTokens": 10, "promptPolicy": policy}
    if policy == "Drop":
        await bench.drive()
        assert len(bench.gateway.bodies("forward-backward")[0]["inputs"]) == 7 * 4
        (step,) = bench.gateway.bodies("optim-step")
        assert step["metrics"]["group/prompt_too_long"] == 1
        (skipped,) = bench.events("prompt-too-long")
        assert (skipped["task"], skipped["detail"]) == (
            "long",
            "it has 22 tokens, and limits.maxPromptTokens is 10",
        )
        return
    with pytest.raises(UserError) as raised:
        await bench.drive()
    problem = raised.value.problem
    assert (problem.reason, bench.gateway.kinds()) == ("PromptTooLong", [])
    assert "the prompt of task long is too long" in problem.detail
    assert "limits.promptPolicy: Drop" in problem.remedy


async def test_when_no_prompt_fits_the_run_ends_and_names_one(bench: Bench) -> None:
    bench.gateway.context = 1
    with pytest.raises(UserError) as raised:
        await bench.drive(BRIEF)
    assert raised.value.problem.reason == "PromptTooLong"
    assert "in 3 rounds no prompt of a task fitted" in raised.value.problem.detail
    assert "configmap/digits/tasks.jsonl/" in raised.value.problem.detail


async def test_another_refusal_of_a_prompt_still_ends_the_run(bench: Bench) -> None:
    bench.gateway.fail("chat", 400)
    with pytest.raises(UserError) as raised:
        await bench.drive(BRIEF)
    assert raised.value.problem.reason == "Status400"


def test_the_words_are_those_of_the_vllm_that_is_installed() -> None:
    found = find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("vLLM is not installed")
    text = (Path(found.origin).parent / "renderers" / "params.py").read_text()
    assert f"This model's {TOO_LONG}" in text


async def test_advantages_that_no_taskset_gives_are_refused_before_anything_is_sampled(
    bench: Bench,
) -> None:
    """A run of an older version may say so; the API server admits none today."""
    bench.gateway.spec |= {"advantage": {"source": "Precomputed"}}
    with pytest.raises(UserError, match="no taskset gives advantages") as raised:
        await bench.drive()
    assert raised.value.problem.reason == "AdvantageSourceInvalid"
    assert not bench.gateway.samples


async def test_tasks_that_moved_elsewhere_end_the_process_so_that_another_mounts_them(
    bench: Bench,
) -> None:
    bench.mounted = "configmap/digits"

    def move() -> None:
        taskset = {**bench.gateway.spec["taskset"], "configMap": {"name": "others"}}
        bench.gateway.spec["taskset"] = taskset

    bench.gateway.hooks["optim-step"] = move
    await bench.drive()
    assert bench.gateway.kinds().count("optim-step") == 1
    assert bench.events("tasks-moved")[0]["to"] == "configmap/others/tasks.jsonl"
    assert not bench.events("finished")


async def test_a_run_that_drops_cut_completions_says_so_when_no_other_group_teaches(
    bench: Bench,
) -> None:
    bench.gateway.finish_reason = "length"
    bench.gateway.spec |= {"steps": 1, "overlong": {"policy": "Drop"}}
    with pytest.raises(UserError, match=r"overlong\.policy is Drop") as raised:
        await bench.drive(BRIEF)
    assert raised.value.problem.remedy.startswith("Raise sampling.maxTokens")
    assert bench.gateway.kinds() == []


def _streams(commands: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    return [body["inputs"] if kind == "forward-backward" else kind for kind, body in commands]


async def test_asynchronous_without_staleness_sends_what_synchronous_sends(bench: Bench) -> None:
    await bench.drive()
    synchronous = list(bench.gateway.commands)
    other = StandIn(schedule={"mode": "Asynchronous", "maxStalenessSteps": 0})
    async with TestServer(other.app()) as running:
        again = Bench(other, str(running.make_url("/")), bench.folder)
        await again.drive()
    assert _streams(other.commands) == _streams(synchronous)
    rollouts = [body["rollouts"] for kind, body in other.commands if kind == "optim-step"]
    assert rollouts == [body["rollouts"] for kind, body in synchronous if kind == "optim-step"]


async def test_an_asynchronous_run_trains_groups_of_the_step_before_and_says_how_old_they_are(
    bench: Bench,
) -> None:
    schedule = {"mode": "Asynchronous", "maxStalenessSteps": 1}
    bench.gateway.spec |= {"steps": 4, "schedule": schedule}
    await bench.drive()
    ages = [
        (
            body["metrics"]["async/staleness_steps/mean"],
            body["metrics"]["async/staleness_steps/max"],
        )
        for body in bench.gateway.bodies("optim-step")
    ]
    assert ages == [(0, 0), (1, 1), (1, 1), (1, 1)]
    # Rewards are figures of the checkpoint that was sampled, not of the one that was trained.
    assert [sorted(body["measured"]) for body in bench.gateway.bodies("optim-step")] == [
        [],
        [],
        ["tiny-000001"],
        ["tiny-000002"],
    ]


async def test_a_streaming_run_adds_gradients_of_each_minibatch(bench: Bench) -> None:
    bench.gateway.spec |= {"steps": 2, "schedule": {"mode": "Streaming", "minibatches": 2}}
    await bench.drive()
    assert bench.gateway.kinds() == ["forward-backward", "forward-backward", "optim-step"] * 2
    assert all(record["trained"] for record in bench.gateway.bodies("optim-step")[0]["rollouts"])


async def test_groups_of_equal_rewards_are_replaced_where_the_run_resamples(bench: Bench) -> None:
    bench.gateway.spec |= {"steps": 1, "groupFilter": {"zeroVariance": "Resample"}}
    first: list[str] = []
    bench.gateway.answer = lambda prompt, index: (
        prompt if index and prompt not in (first or first.append(prompt) or first) else "none"
    )
    await bench.drive()
    assert len(bench.asked()) == 3
    assert len(set(bench.asked())) == 3
    assert len(bench.gateway.bodies("forward-backward")[0]["inputs"]) == 8


async def test_resampling_has_a_bound_and_then_trains_on_what_there_is(bench: Bench) -> None:
    rules = {"zeroVariance": "Resample", "maxResampleRounds": 2}
    bench.gateway.spec |= {"steps": 1, "groupFilter": rules}
    first: list[str] = []
    bench.gateway.answer = lambda prompt, index: (
        prompt if index and prompt in (first or first.append(prompt) or first) else "none"
    )
    await bench.drive()
    assert len(bench.asked()) == 4
    assert len(bench.gateway.bodies("forward-backward")[0]["inputs"]) == 4


async def test_a_step_waits_for_the_fewest_groups_that_the_run_wants(bench: Bench) -> None:
    bench.gateway.spec |= {"steps": 1, "groupFilter": {"minGroups": 2}}
    calls = iter(range(100))
    bench.gateway.answer = lambda prompt, index: prompt if next(calls) >= 4 and index else "none"
    await bench.drive()
    assert len(bench.asked()) == 4
    assert len(bench.gateway.bodies("forward-backward")[0]["inputs"]) == 8


def held_out(**changes: Any) -> dict[str, Any]:
    """An evaluation on the digits of the file that the run does not train on."""
    tasks = {"configMap": {"name": "digits"}, "answerExtraction": "LastNumber"}
    return {"name": "held-out", "taskset": {"seed": 9, "size": 4, **tasks}, **changes}


def _half_held_out(gateway: StandIn, **changes: Any) -> None:
    """The run trains on four of the eight digits, the others are held out."""
    gateway.ends = True
    taskset = {**gateway.spec["taskset"], "size": 4}
    gateway.spec |= {"taskset": taskset, "evaluation": [held_out(**changes)]}


async def test_checkpoints_are_asked_held_out_tasks_and_the_last_is_asked_before_the_end(
    bench: Bench,
) -> None:
    _half_held_out(bench.gateway, everySteps=2)
    await bench.drive()
    assert sorted(bench.gateway.evaluations) == [
        ("tiny-000002", "held-out"),
        ("tiny-000003", "held-out"),
    ]
    found = bench.gateway.evaluations["tiny-000003", "held-out"]
    assert found["tasks"] == 4
    assert found["metrics"]["mean_reward"] == 1.0
    asked = [s for s in bench.gateway.samples if s["temperature"] == 0.0]
    assert {sample["model"].partition("@")[2] for sample in asked} == {"tiny-000002", "tiny-000003"}
    trained = {s["messages"][-1]["content"] for s in bench.gateway.samples if s["temperature"]}
    assert len(trained) == 4
    assert trained.isdisjoint(s["messages"][-1]["content"] for s in asked)


async def test_a_run_that_is_over_ends_its_runner_though_the_next_one_has_the_trainer(
    bench: Bench,
) -> None:
    _half_held_out(bench.gateway, at=["End"])
    bench.gateway.then = "NotOwnRun"
    asked = bench.gateway.greedy_waits_for = asyncio.Event()
    # The last evaluation takes longer than any wait for the operator, and fails once.
    bench.gateway.fail("evaluation", 403)
    driving = asyncio.ensure_future(bench.drive(BRIEF))
    await asyncio.sleep(4 * BRIEF.settle_seconds)
    assert not driving.done()
    asked.set()
    await driving
    assert [name for name, _ in bench.gateway.evaluations] == ["tiny-000003"]
    assert [wait["reason"] for wait in bench.events("waiting")] == ["Status403"]
    assert [one["over"] for one in bench.events("finished")] == [True]


async def test_the_base_is_asked_at_the_start_and_the_run_keeps_its_figures(bench: Bench) -> None:
    _half_held_out(bench.gateway, at=["Start"])
    await bench.drive()
    # The base has no checkpoint to record it with.
    (recorded,) = bench.gateway.evaluations.items()
    assert recorded[0] == ("run", "held-out")
    assert (recorded[1]["tasks"], recorded[1]["metrics"]["mean_reward"]) == (4, 1.0)
    (event,) = bench.events("evaluated")
    assert (event["checkpoint"], event["step"]) == ("base", 0)
    assert event["metrics"]["pass@1"] == 1.0


async def test_pass_at_k_is_of_sampled_answers(bench: Bench) -> None:
    _half_held_out(bench.gateway, groupSize=4, temperature="0.7", passAtK=[1, 2])
    await bench.drive()
    metrics = bench.gateway.evaluations["tiny-000003", "held-out"]["metrics"]
    # Two of four answers are right: 1 - C(2, 2) / C(4, 2).
    assert metrics["pass@1"] == 0.5
    assert metrics["pass@2"] == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    "limits", [{"maxPromptTokens": 10}, {"maxPromptTokens": 10, "promptPolicy": "Fail"}, {}]
)
async def test_a_held_out_prompt_beyond_the_limits_is_left_out_or_ends_the_run_by_name(
    bench: Bench, tmp_path: Path, limits: dict[str, Any]
) -> None:
    rows = [json.dumps({"prompt": f"{n}=", "answer": str(n)}) for n in range(8)]
    rows[6] = json.dumps({"id": "long", "prompt": "6=" + "?" * 20, "answer": "6"})
    (tmp_path / "tasks.jsonl").write_text("\n".join(rows))
    _half_held_out(bench.gateway, at=["Start"])
    bench.gateway.spec["limits"] = limits
    if not limits:
        # The context is a limit as well.
        bench.gateway.context = 10
    if "promptPolicy" in limits:
        with pytest.raises(UserError, match="the prompt of task long is too long") as raised:
            await bench.drive()
        assert raised.value.problem.reason == "PromptTooLong"
        return
    await bench.drive()
    (event,) = bench.events("evaluated")
    assert (event["tasks"], event["prompts_too_long"]) == (3, 1)
    assert bench.gateway.evaluations["run", "held-out"]["tasks"] == 3


async def test_training_goes_on_while_an_evaluation_is_slow(bench: Bench) -> None:
    _half_held_out(bench.gateway, everySteps=1)
    committed = asyncio.Event()
    bench.gateway.greedy_waits_for = committed
    # Set by the third step, which no evaluation before it holds up.
    bench.gateway.committed[3] = committed
    await bench.drive()
    assert len(bench.gateway.evaluations) == 3


async def test_an_evaluation_that_may_not_be_recorded_is_a_wait_and_is_begun_again(
    bench: Bench,
) -> None:
    _half_held_out(bench.gateway, at=["End"])
    bench.gateway.ends = False
    bench.gateway.fail("evaluation", 403)
    await bench.drive()
    assert [wait["reason"] for wait in bench.events("waiting")] == ["Status403"]
    assert [name for name, _ in bench.gateway.evaluations] == ["tiny-000003"]


async def test_held_out_tasks_that_are_missing_in_mid_run_end_it_at_the_next_step(
    bench: Bench,
) -> None:
    _half_held_out(bench.gateway, everySteps=1)
    bench.gateway.spec["steps"] = 50
    bench.gateway.spec["evaluation"][0]["taskset"]["size"] = 5
    with pytest.raises(UserError, match="only 4 of 5 tasks differ"):
        await bench.drive()
    assert bench.gateway.run_step < 50


async def test_held_out_tasks_that_are_not_enough_end_the_run_with_the_remedy(
    bench: Bench,
) -> None:
    _half_held_out(bench.gateway)
    bench.gateway.spec["evaluation"][0]["taskset"]["size"] = 5
    with pytest.raises(UserError) as raised:
        await bench.drive()
    assert raised.value.problem.reason == "TasksetInvalid"
    assert "only 4 of 5 tasks differ" in raised.value.problem.detail


async def test_a_step_keeps_the_rollouts_that_the_run_asks_for(bench: Bench) -> None:
    log = {"groupsPerStep": 1, "everySteps": 2, "includeTokens": "Sampled"}
    bench.gateway.spec |= {"rolloutLog": log}
    await bench.drive()
    first, second, third = bench.gateway.bodies("optim-step")
    assert [len(step["rollouts"]) for step in (first, second, third)] == [0, 4, 0]
    assert [step["keep_rollouts"] for step in (first, second, third)] == [False, True, False]
    row = second["rollouts"][0]
    assert len(row["token_ids"]) == len(row["logprobs"]) == row["tokens"]
