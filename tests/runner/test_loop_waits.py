"""What holds a run, what ends it, and what it goes on after."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.runner.bench import BRIEF, Bench
from tests.runner.standin import StandIn

from espalier.client import DeadlineError, Patience
from espalier.runner.run_end import UserError, WaitError

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
