"""A declared run reports to its trackers, and goes on whatever they do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.runner.bench import Bench
from tests.runner.standin import UID
from tests.tracking.wandb_files import offline_runs

from espalier.api.run.tracking import Tracking
from espalier.runner.run_end import UserError
from espalier.runner.run_trackers import OF_CHECKPOINT
from espalier.tracking.tracker import package
from espalier.trainer.batch.step_metrics import METRICS

SECRET = "planted-secret-of-the-pod"


@pytest.fixture(autouse=True)
def _pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ESPALIER_BOARDS", str(tmp_path / "boards"))
    monkeypatch.setenv("WANDB_API_KEY", SECRET * 2)


def scalars(directory: Path, name: str) -> list[int]:
    """The steps at which TensorBoard would draw a metric."""
    read = package(
        "tensorboard.backend.event_processing.event_accumulator", "tensorboard"
    ).EventAccumulator(str(directory))
    read.Reload()
    return [point.step for point in read.Scalars(name)]


async def test_each_step_is_told_under_the_runs_own_id(bench: Bench, tmp_path: Path) -> None:
    tracking: dict[str, Any] = {
        **{"project": "sums", "runName": "third try"},
        **{"wandb": {"mode": "Offline"}, "tensorBoard": {"claimName": "boards"}},
    }
    bench.gateway.spec |= {"tracking": tracking}
    await bench.drive()
    board = tmp_path / "boards" / "sums" / UID
    assert scalars(board, "rollout/reward/mean") == [1, 2, 3]
    # The trainer's figures too, by the names that the checkpoint has them under.
    assert scalars(board, "loss/sum") == [1, 2, 3]
    (run,) = offline_runs(tmp_path / "home")
    assert (run.id, run.project, run.name) == (UID, "sums", "third try")
    assert [row["step"] for row in run.history] == [1, 2, 3]
    assert run.config["spec"]["learningRate"] == "1e-3"
    # What the spec leaves out is there as it binds.
    bound = {"zeroVariance": "Drop", "minGroups": 1, "tolerance": "1e-6"}
    assert run.config["spec"]["groupFilter"] == bound
    for file in (tmp_path / "home").rglob("*.*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()
    assert bench.events("tracker-failed") == []


async def test_a_run_that_is_started_again_goes_on_in_its_trackers(
    bench: Bench, tmp_path: Path
) -> None:
    bench.gateway.spec |= {"steps": 2, "tracking": {"tensorBoard": {"claimName": "boards"}}}
    await bench.drive()
    bench.gateway.spec |= {"steps": 3}
    await bench.drive()
    assert scalars(tmp_path / "boards" / "espalier" / UID, "rollout/reward/mean") == [1, 2, 3]


async def test_a_tracker_that_cannot_be_reached_is_told_and_holds_nothing_up(
    bench: Bench,
) -> None:
    bench.gateway.spec |= {"tracking": {"mlflow": {"trackingURI": "http://127.0.0.1:9"}}}
    await bench.drive()
    assert bench.gateway.kinds().count("optim-step") == 3
    assert "MLflow.start failed" in bench.events("tracker-failed")[0]["detail"]
    # The run's own record of it, beside each checkpoint.
    last = bench.gateway.bodies("optim-step")[-1]["metrics"]
    assert last["tracking/failed"] >= 1


async def test_a_tracker_that_this_image_lacks_ends_the_run_before_its_first_step(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    bench.gateway.spec |= {"tracking": {"tensorBoard": {"claimName": "boards"}}}
    with pytest.raises(UserError, match="tensorboardX") as raised:
        await bench.drive()
    assert raised.value.problem.reason == "TrackingInvalid"
    assert bench.gateway.kinds() == []


def test_every_figure_of_the_trainer_has_the_name_that_its_checkpoint_has() -> None:
    assert {m.answer: m.checkpoint for m in METRICS if m.answer} == OF_CHECKPOINT


def test_what_is_told_of_a_run_can_be_written() -> None:
    told = Tracking.model_validate({"wandb": {"mode": "Offline"}}).wire()
    assert json.loads(json.dumps(told)) == {
        "project": "espalier",
        "wandb": {"mode": "Offline"},
    }
