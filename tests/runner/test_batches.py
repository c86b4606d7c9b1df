"""Several optimizer steps with one batch: in order, exactly once, over crashes and rollbacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.runner.bench import BRIEF, Bench
from tests.runner.standin import half_right
from tests.runner.test_with_trainer import Passage, checkpoints, drive, passage_at

from espalier.client import RefusedError
from espalier.runner.run_end import UserError

TWICE = {"minibatches": 2, "epochs": 2}


def prompts(body: dict[str, Any]) -> list[str]:
    """What the trajectories of a command were asked, group after group."""
    asked = (bytes(item["samples"][0]["prompt_token_ids"]).decode() for item in body["inputs"])
    return list(dict.fromkeys(asked))


def trained(bench: Bench) -> list[list[str]]:
    return [prompts(body) for body in bench.gateway.bodies("forward-backward")]


async def test_a_batch_is_sampled_once_and_every_step_is_a_checkpoint(bench: Bench) -> None:
    bench.gateway.spec |= {"batch": TWICE, "steps": 8}
    await bench.drive()
    asked = bench.asked()
    # Two groups a minibatch, two minibatches a batch, and two batches in eight steps.
    assert [sample["model"].partition("@")[2] for sample in bench.gateway.samples] == [
        *["base"] * 4,
        *["tiny-000004"] * 4,
    ]
    first, second = asked[:4], asked[4:]
    assert len({*asked}) == 8
    for batch, steps in ((first, trained(bench)[:4]), (second, trained(bench)[4:])):
        assert steps[:2] == [batch[:2], batch[2:]]
        assert sorted(steps[2] + steps[3]) == sorted(batch)
    assert bench.gateway.kinds() == ["forward-backward", "optim-step"] * 8
    # By run and step alone, in another process too.
    assert trained(bench)[2:4] != trained(bench)[:2] or trained(bench)[6:] != trained(bench)[4:6]
    steps = bench.gateway.bodies("optim-step")
    names = ("batch/minibatch", "batch/epoch", "batch/steps_before")
    assert [[step["metrics"][name] for name in names] for step in steps[:4]] == [
        [1, 1, 0],
        [2, 1, 1],
        [1, 2, 2],
        [2, 2, 3],
    ]
    assert [step["metrics"]["completion/tokens_total"] > 0 for step in steps] == [
        *[True, False, False, False],
        *[True, False, False, False],
    ]
    assert [step["metrics"]["rollout/reward/mean"] for step in steps] == [0.5] * 8
    assert [len(step["rollouts"]) for step in steps[:4]] == [16, 0, 0, 0]
    assert [bool(step["measured"]) for step in steps[4:]] == [True, False, False, False]
    assert [step["cursor"]["batch_left"] for step in steps[:4]] == [3, 2, 1, 0]


@pytest.mark.parametrize("schedule", ["Synchronous", "Asynchronous"])
async def test_of_the_last_batch_only_the_minibatches_are_sampled_that_steps_are_left_for(
    bench: Bench, schedule: str
) -> None:
    stale = {"maxStalenessSteps": 3} if schedule == "Asynchronous" else {}
    bench.gateway.spec |= {"schedule": {"mode": schedule, **stale}}
    bench.gateway.spec |= {"batch": {"minibatches": 3}, "steps": 4, "groupsPerStep": 2}
    await bench.drive()
    assert [len(groups) for groups in trained(bench)] == [2] * 4
    assert len(bench.gateway.samples) == 8
    figures = [step["metrics"]["batch/minibatch"] for step in bench.gateway.bodies("optim-step")]
    assert figures == [1, 2, 3, 1]


@pytest.mark.parametrize("command", ["forward-backward", "optim-step"])
async def test_a_runner_killed_between_two_minibatches_goes_on_with_the_same_samples(
    bench: Bench, command: str
) -> None:
    bench.gateway.spec |= {"batch": TWICE, "steps": 4}
    # The second step's command is refused, which ends the runner.
    bench.gateway.hooks[command] = lambda: bench.gateway.fail(command, "", 418)
    with pytest.raises(RefusedError):
        await bench.drive()
    assert bench.gateway.run_step == 1
    # Had it sampled anew, the answers would be others.
    bench.gateway.answer = lambda prompt, index: half_right(prompt, index + 1)
    await bench.drive()
    assert len(bench.gateway.samples) == 4
    again = trained(bench)[-3:]
    assert again[0] == bench.asked()[2:]
    assert sorted(again[1] + again[2]) == sorted(bench.asked())
    assert bench.gateway.run_step == 4
    assert bench.gateway.kinds().count("optim-step") == 4


async def test_a_rollback_drops_what_is_left_of_a_batch(bench: Bench) -> None:
    bench.gateway.spec |= {"batch": TWICE, "steps": 2}
    await bench.drive()
    assert bench.gateway.batch is not None
    # The trainer gives nothing back under another term.
    bench.gateway.term, bench.gateway.batch = 2, None
    bench.gateway.spec |= {"steps": 4}
    await bench.drive()
    assert len(bench.gateway.samples) == 8


async def test_a_minibatch_without_a_gradient_is_left_out_and_the_next_one_is_trained(
    bench: Bench,
) -> None:
    bench.gateway.spec |= {"batch": {"minibatches": 2}, "steps": 2}

    def clipped() -> None:
        bench.gateway.pending = 0

    bench.gateway.hooks["optim-step"] = clipped
    await bench.drive()
    first, second = bench.asked()[:2], bench.asked()[2:4]
    assert trained(bench)[:2] == [first, second]
    # The step that was taken is the batch's first, and the next one is of another batch, of which
    # one minibatch is left to train.
    steps = bench.gateway.bodies("optim-step")
    assert [step["metrics"]["batch/steps_before"] for step in steps] == [0, 0]
    assert len(bench.gateway.samples) == 6


@pytest.mark.parametrize(("epochs", "anchored"), [(1, [False, True]), (2, [True] * 4)])
async def test_with_the_trainer_as_anchor_later_steps_have_its_first_log_probs(
    bench: Bench, epochs: int, anchored: list[bool]
) -> None:
    bench.gateway.spec |= {
        "batch": {"minibatches": 2, "epochs": epochs},
        "loss": {"name": "ppo", "ratioAnchor": "Trainer"},
        "steps": 2 * epochs,
    }
    await bench.drive()
    # One forward before the first step, of what is seen again after it.
    assert bench.gateway.kinds() == ["forward"] + ["forward-backward", "optim-step"] * 2 * epochs
    found = [
        {
            tuple(sample["anchor_logprobs"] or ())
            for item in body["inputs"]
            for sample in item["samples"]
        }
        for body in bench.gateway.bodies("forward-backward")
    ]
    assert [all(set(row) == {-0.25} and row for row in rows) for rows in found] == anchored


async def test_groups_that_do_not_reach_every_minibatch_are_waited_for(bench: Bench) -> None:
    taught = {"0=", "1=", "2=", "3="}

    def answer(prompt: str, index: int) -> str:
        return half_right(prompt, index) if prompt in taught else "none"

    bench.gateway.answer = answer
    bench.gateway.spec |= {
        "groupsPerStep": 1,
        "batch": {"minibatches": 2},
        "groupFilter": {"minGroups": 1},
        "steps": 2,
    }
    await bench.drive()
    assert all(len(groups) == 1 and set(groups) <= taught for groups in trained(bench))
    bench.gateway.answer = lambda prompt, index: half_right(prompt, index if prompt == "0=" else 1)
    bench.gateway.spec |= {"steps": 4}
    with pytest.raises(UserError, match="minGroups is 1 of each of 2 minibatches"):
        await bench.drive(BRIEF)


async def test_a_schedule_that_cannot_take_the_steps_of_a_batch_is_refused(bench: Bench) -> None:
    bench.gateway.spec |= {
        "batch": TWICE,
        "schedule": {"mode": "Asynchronous", "maxStalenessSteps": 2},
    }
    with pytest.raises(UserError, match="staleness is 2") as refused:
        await bench.drive()
    assert refused.value.problem.reason == "BatchInvalid"


async def test_an_asynchronous_batch_samples_ahead_within_its_bound(bench: Bench) -> None:
    bench.gateway.spec |= {
        "batch": {"minibatches": 2},
        "schedule": {"mode": "Asynchronous", "maxStalenessSteps": 3},
        "steps": 6,
    }
    await bench.drive()
    steps = bench.gateway.bodies("optim-step")
    # Batches of two steps, the next of which is sampled at the first of the one before.
    assert [step["metrics"]["async/staleness_steps/max"] for step in steps] == [0, 1, 2, 3, 2, 3]
    # Two groups a step, and none for steps after the last.
    assert len(bench.gateway.samples) == 12


def answer(prompt: str, index: int) -> str:
    """The task's digit, then others: the same to the same question."""
    return str((int(prompt[0]) + index) % 10)


async def weights(folder: Path, spec: dict[str, Any], *, killed: bool) -> list[Path]:
    """The checkpoints of a run on a real trainer, killed before its second step or not."""
    async with passage_at(folder) as (gateway, url):
        gateway.spec |= spec
        gateway.says = answer
        if killed:
            await _until_killed(gateway, url, folder)
            # What is sampled from here on is nothing that the run should see.
            gateway.says = lambda prompt, index: "9"
        await drive(url, folder / "tasks")
        assert len(gateway.samples) == 4
    return checkpoints(folder / "weights")


async def _until_killed(gateway: Passage, url: str, folder: Path) -> None:
    gateway.refuse_next, gateway.refuse_after = "optim-step", 1
    with pytest.raises(RefusedError):
        await drive(url, folder / "tasks")


async def test_a_run_killed_between_two_minibatches_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path,
) -> None:
    spec = {
        "steps": 4,
        "batch": TWICE,
        "loss": {"name": "ppo", "ratioAnchor": "Trainer"},
        "learningRate": "1e-2",
    }
    whole, resumed = [
        await weights(tmp_path / str(killed), spec, killed=killed) for killed in (False, True)
    ]
    assert len(whole) == len(resumed) == 4
    for one, other in zip(whole, resumed, strict=True):
        expected, found = (load_file(p / "adapter_model.safetensors") for p in (one, other))
        assert all(bool((found[name] == value).all()) for name, value in expected.items())
    # A second look at the same samples: the policy has moved from where it first saw them.
    rows = [json.loads((path / "metrics.jsonl").read_text()) for path in whole]
    assert [row["batch/epoch"] for row in rows] == [1, 1, 2, 2]
    assert [row["tokens/trained"] for row in rows] == [8] * 4
    assert not (whole[-1] / "batch.json").exists()


async def test_single_answers_teach_by_their_reward_alone(bench: Bench) -> None:
    bench.gateway.spec |= {"groupSize": 1, "advantage": {"estimator": "None"}, "steps": 1}
    await bench.drive()
    (body,) = bench.gateway.bodies("forward-backward")
    assert (body["advantage_estimator"], body["group_size"]) == ("None", 1)
    assert [item["reward"] for item in body["inputs"]] == [1.0, 1.0]
    # An answer that earns nothing has no advantage.
    bench.gateway.answer = lambda prompt, index: "none"
    bench.gateway.spec |= {"steps": 2}
    with pytest.raises(UserError) as refused:
        await bench.drive(BRIEF)
    assert refused.value.problem.reason == "RewardsUninformative"
