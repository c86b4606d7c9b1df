"""What a client's step leaves beside its checkpoint: every rollout of its batches, and why."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from tests.client.test_training_client import INPUTS, client
from tests.runner.standin import StandIn

from espalier import Fit, FitConfig, InvalidRequestError, Job, Rollout, Sampling, Session


@dataclass(frozen=True)
class Digit:
    id: str


TASKS = [Digit("3"), Digit("4")]
SAMPLING = Sampling(max_tokens=4)


async def play(task: Digit, session: Session) -> float:
    """Of the first group one is right; of the second one fails."""
    session.metadata["seed"] = session.rollout.rollout_idx
    await session.sample([{"role": "user", "content": f"{task.id}="}])
    if task.id == "4" and session.rollout.rollout_idx == 1:
        raise RuntimeError("the board is gone")
    return float(session.rollout.rollout_idx == 0)


@pytest.fixture
async def server() -> AsyncIterator[tuple[StandIn, str]]:
    gateway = StandIn()
    async with TestServer(gateway.app()) as running:
        yield gateway, str(running.make_url("/"))


def kept(gateway: StandIn, step: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gateway.bodies("optim-step")[step]["rollouts"]
    return found


async def test_a_step_keeps_the_whole_batch_that_it_learnt_from(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server
    async with client(url) as trainer:
        batch = await Job(trainer, play, group=2, sampling=SAMPLING).run(TASKS)
        await trainer.forward_backward(batch.trajectories())
        await trainer.optim_step(learning_rate=1e-5)
    rows = kept(gateway)
    assert [(row["task"], row["attempt"], row["trained"]) for row in rows] == [
        *(("3", 0, True), ("3", 1, True)),
        *(("4", 0, False), ("4", 1, False)),
    ]
    first, failed = rows[0], rows[3]
    assert first["prompt"] == [{"role": "user", "content": "3="}]
    assert first["completion"] == batch.groups[0][0].turns[0].text
    assert (first["reward"], first["stop_reason"], first["turns"]) == (1.0, "done", 1)
    assert first["tokens"] == len(batch.groups[0][0].turns[0].token_ids)
    assert first["metadata"] == {"seed": 0}
    assert "error" not in first
    assert failed["status"] == "error"
    assert failed["error"] == "RuntimeError during starting: the board is gone"
    assert failed["metadata"] == {"seed": 1}
    assert "reward" not in failed


async def test_a_fit_keeps_what_every_step_was_trained_on(server: tuple[StandIn, str]) -> None:
    gateway, url = server
    config = FitConfig(steps=2, learning_rate=1e-3, group=2, tasks_per_step=2, sampling=SAMPLING)
    async with client(url) as trainer:
        await Fit(trainer, TASKS, play, config).fit_async()
    for step in range(2):
        assert [row["trained"] for row in kept(gateway, step)] == [True, True, False, False]
    traces = {row["trace"] for step in range(2) for row in kept(gateway, step)}
    assert len(traces) == 8


async def test_several_batches_before_a_step_are_all_kept_once(server: tuple[StandIn, str]) -> None:
    gateway, url = server
    async with client(url) as trainer:
        job = Job(trainer, play, group=2, sampling=SAMPLING)
        one, other = await job.run(TASKS), await job.run(TASKS)
        await trainer.forward_backward(one.trajectories())
        await trainer.forward_backward(one.trajectories())
        await trainer.forward_backward(other.groups[0])
        await trainer.optim_step(learning_rate=1e-5)
        await trainer.step(INPUTS, learning_rate=1e-5)
    assert [row["trace"] for row in kept(gateway)] == [
        r.trace_id for r in (*one.rollouts, *other.groups[0])
    ]
    # Payloads alone: the trainer says of them what it can.
    assert kept(gateway, 1) == []


async def test_what_was_dropped_or_refused_is_not_said_to_be_trained(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server
    async with client(url) as trainer:
        job = Job(trainer, play, group=2, sampling=SAMPLING)
        dropped, refused, good = [await job.run(TASKS[:1]) for _ in range(3)]
        await trainer.forward_backward(dropped.trajectories())
        await trainer.zero_grad()
        gateway.fail("forward-backward", 422)
        with pytest.raises(InvalidRequestError):
            await trainer.forward_backward(refused.trajectories())
        await trainer.forward_backward(good.trajectories())
        await trainer.optim_step(learning_rate=1e-5)
    assert [row["trace"] for row in kept(gateway)] == [r.trace_id for r in good.rollouts]


async def test_a_step_that_was_refused_leaves_its_rollouts_to_the_next(
    server: tuple[StandIn, str],
) -> None:
    gateway, url = server
    async with client(url) as trainer:
        batch = await Job(trainer, play, group=2, sampling=SAMPLING).run(TASKS[:1])
        await trainer.forward_backward(batch.trajectories())
        gateway.fail("optim-step", 422)
        with pytest.raises(InvalidRequestError):
            await trainer.optim_step(learning_rate=1e-5)
        await trainer.optim_step(learning_rate=1e-5)
    assert [row["trained"] for row in kept(gateway, -1)] == [True, True]


async def test_a_caller_may_say_what_is_kept(server: tuple[StandIn, str]) -> None:
    gateway, url = server
    mine = {"task": "x", "reward": 1.0}
    async with client(url) as trainer:
        batch = await Job(trainer, play, group=2, sampling=SAMPLING).run(TASKS[:1])
        await trainer.step(batch.groups[0], learning_rate=1e-5, rollouts=batch)
        await trainer.step(INPUTS, learning_rate=1e-5, rollouts=[mine, batch.rollouts[0]])
    assert [row["trained"] for row in kept(gateway)] == [True, True]
    assert kept(gateway, 1)[0] == mine
    assert kept(gateway, 1)[1]["trained"] is False


def test_metadata_that_is_no_json_is_kept_as_python_shows_it() -> None:
    rollout = Rollout("t", 0, "g", metadata={"path": object, 1: (float("nan"), {2})})
    assert rollout.record(trained=False)["metadata"] == {
        "path": "<class 'object'>",
        "1": ["nan", "{2}"],
    }
