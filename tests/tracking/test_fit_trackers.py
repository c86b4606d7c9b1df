"""A Fit that is started again goes on in its trackers, and its rollouts become a page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from tests.loop.test_fit import TASKS, Digit, client, config, repeat
from tests.runner.standin import StandIn
from tests.tracking.test_services import scalars
from tests.tracking.test_trackers import Hangs
from tests.tracking.wandb_files import offline_runs

from espalier import Fit, Session, track
from espalier.tracking.trackers import Trackers, TrackerWarning


@pytest.fixture
async def server() -> AsyncIterator[tuple[StandIn, str]]:
    gateway = StandIn()
    async with TestServer(gateway.app()) as running:
        yield gateway, str(running.make_url("/"))


async def test_a_fit_goes_on_in_one_run_and_repeats_no_step(
    server: tuple[StandIn, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for steps in (2, 3):
        trackers = track(["wandb", "tensorboard"], tmp_path, run_id="sums-3", project="sums")
        async with client(server[1]) as trainer:
            await Fit(trainer, TASKS, repeat, config(steps=steps), trackers=trackers).fit_async()
    # Every other rollout is right.
    assert scalars(tmp_path / "tensorboard" / "sums" / "sums-3") == [(1, 0.5), (2, 0.5), (3, 0.5)]
    runs = offline_runs(tmp_path)
    assert {run.id for run in runs} == {"sums-3"}
    assert [row["step"] for run in runs for row in run.history] == [1, 2, 3]
    assert runs[-1].config["steps"] == 3
    assert runs[-1].config["sampling"]["max_tokens"] == 4


async def test_a_tracker_that_hangs_does_not_slow_a_fit(
    server: tuple[StandIn, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("espalier.loop.fit.Trackers", partial(Trackers, finish_seconds=0.5))
    gateway, url = server
    hanging = Hangs()
    async with client(url) as trainer:
        fit = Fit(trainer, TASKS, repeat, config(), trackers=[hanging])
        with pytest.warns(TrackerWarning, match=r"Hangs is slow: it has not ended in time"):
            await fit.fit_async()
    hanging.let_go.set()
    assert gateway.kinds().count("optim-step") == 3


async def test_a_rollout_function_keeps_the_tokens_of_its_rollouts(
    server: tuple[StandIn, str],
) -> None:
    async def kept(task: Digit, session: Session) -> float:
        session.rollout.keep_tokens = session.rollout.rollout_idx == 0
        return await repeat(task, session)

    gateway, url = server
    async with client(url) as trainer:
        await Fit(trainer, TASKS, kept, config(steps=1)).fit_async()
    (step,) = gateway.bodies("optim-step")
    with_tokens = [row for row in step["rollouts"] if "token_ids" in row]
    assert len(with_tokens) == len(step["rollouts"]) / 2
    for row in with_tokens:
        assert len(row["token_ids"]) == len(row["logprobs"]) == row["tokens"]
    # What the step was taken with, for people and for conditions.
    assert step["metrics"]["group/zero_variance_fraction"] == 0
    assert step["metrics"]["group/all_fail_fraction"] == 0
    assert step["metrics"]["rollout/response_tokens/max"] >= 1
