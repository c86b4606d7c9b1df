"""W&B, TensorBoard and MLflow, each the real one: what they show of a run that is resumed."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.tracking.mlflow_process import mlflow_server
from tests.tracking.wandb_files import offline_runs

from espalier.client.errors import ConfigurationError
from espalier.tracking import MLflow, TensorBoard, TrackedRun, Tracker, WeightsAndBiases, track
from espalier.tracking.trackers import Trackers

RUN = TrackedRun("6f1f9c1e-uid", "sums", "grpo")
PLANTED = ("hf_planted000000000000", "hunter2hunter2", "planted-environment-secret")
CONFIG = {
    "model": "default/tiny",
    "spec": {"learningRate": "1e-4", "sampling": {"maxTokens": 64, "stopTokenIds": [7]}},
    "hubToken": PLANTED[0],
    "store": {"password": PLANTED[1], "url": f"https://me:{PLANTED[1]}@store/x"},
    "note": f"started with {PLANTED[2]}",
}


@pytest.fixture(autouse=True)
def _secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", PLANTED[2])


def report(tracker: Callable[[], Tracker], *steps: int, config: Any = CONFIG) -> None:
    """One process of a run: it starts, tells steps and ends, twice."""
    trackers = Trackers([tracker()])
    trackers.start(config)
    for step in steps:
        trackers.log(step, {"rollout/reward/mean": step / 10, "loss:sum": -1.0})
    trackers.finish()
    trackers.finish()
    assert trackers.metrics() == {}


def test_wandb_shows_one_run_over_two_starts(tmp_path: Path) -> None:
    def tracker() -> Tracker:
        return WeightsAndBiases(RUN, tmp_path, mode="offline")

    report(tracker, 1, 2)
    report(tracker, 3, 4)
    first, second = offline_runs(tmp_path)
    assert (first.id, first.project, first.name) == (RUN.id, "sums", "grpo")
    assert second.id == first.id
    rows = first.history + second.history
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    # W&B's own number of a row, by which it joins the parts of a run.
    assert [row["_step"] for row in rows] == [1, 2, 3, 4]
    assert [row["rollout/reward/mean"] for row in rows] == [0.1, 0.2, 0.3, 0.4]
    assert second.config["spec"] == CONFIG["spec"]


def test_wandb_shows_the_steps_that_a_rollback_takes_anew(tmp_path: Path) -> None:
    report(lambda: WeightsAndBiases(RUN, tmp_path, mode="offline"), 1, 2, 3, 2, 3)
    (run,) = offline_runs(tmp_path)
    assert [row["step"] for row in run.history] == [1, 2, 3, 2, 3]


def test_no_file_of_wandb_holds_a_secret(tmp_path: Path) -> None:
    key = "k" * 36 + "feed"
    report(lambda: WeightsAndBiases(RUN, tmp_path, mode="offline", api_key=key), 1)
    assert len(offline_runs(tmp_path)) == 1
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    for file in files:
        content = file.read_bytes()
        assert [secret for secret in (*PLANTED, key) if secret.encode() in content] == []


def scalars(directory: Path) -> list[tuple[int, float]]:
    """The rewards as TensorBoard itself would draw them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    read.Reload()
    return [(point.step, round(point.value, 6)) for point in read.Scalars("rollout/reward/mean")]


def test_tensorboard_draws_one_curve_over_two_starts(tmp_path: Path) -> None:
    report(lambda: TensorBoard(RUN, tmp_path), 1, 2)
    report(lambda: TensorBoard(RUN, tmp_path), 3)
    assert scalars(tmp_path / "sums" / RUN.id) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("events*"))
    assert b"learningRate" in written
    assert [secret for secret in PLANTED if secret.encode() in written] == []


def test_tensorboard_forgets_the_steps_that_a_rollback_took_back(tmp_path: Path) -> None:
    report(lambda: TensorBoard(RUN, tmp_path), 1, 2, 3, 2)
    assert scalars(tmp_path / "sums" / RUN.id) == [(1, 0.1), (2, 0.2)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as uri:
        yield uri


def asked(uri: str, route: str, body: dict[str, Any]) -> dict[str, Any]:
    """What MLflow's API says."""
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{uri}/api/2.0/mlflow/{route}", content, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def mlflow_runs(uri: str) -> list[dict[str, Any]]:
    experiments = asked(uri, "experiments/search", {"max_results": 100})["experiments"]
    (mine,) = [e["experiment_id"] for e in experiments if e["name"] == "sums"]
    found: list[dict[str, Any]] = asked(uri, "runs/search", {"experiment_ids": [mine]})["runs"]
    return found


def test_mlflow_shows_one_run_over_two_starts(server: str) -> None:
    report(lambda: MLflow(RUN, server), 1, 2)
    edited = CONFIG | {"spec": {"learningRate": "2e-4", "sampling": {"maxTokens": 64}}}
    report(lambda: MLflow(RUN, server), 3, config=edited)
    (run,) = mlflow_runs(server)
    assert run["info"]["run_name"] == "grpo"
    assert run["info"]["status"] == "FINISHED"
    history = urllib.request.urlopen(
        f"{server}/api/2.0/mlflow/metrics/get-history"
        f"?run_id={run['info']['run_id']}&metric_key=rollout/reward/mean",
        timeout=30,
    )
    points = json.loads(history.read())["metrics"]
    assert [(int(p["step"]), p["value"]) for p in points] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    params = {param["key"]: param["value"] for param in run["data"]["params"]}
    assert params["spec.learningRate"] == "1e-4"
    assert params["spec.sampling.maxTokens"] == "64"
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert tags["changed/spec.learningRate"] == "2e-4"
    shown = json.dumps(run)
    assert [secret for secret in PLANTED if secret in shown] == []


def test_mlflow_takes_more_than_one_request_holds(server: str) -> None:
    run = TrackedRun("many", "sums")
    tracker = MLflow(run, server)
    tracker.start({f"setting-{n}": n for n in range(250)})
    tracker.log(1, {f"metric/{n}@{n}": float(n) for n in range(1100)})
    tracker.finish()
    (found,) = [r for r in mlflow_runs(server) if r["info"]["run_name"] == "many"]
    assert len(found["data"]["params"]) == 250
    assert len(found["data"]["metrics"]) == 1100


def test_a_server_that_refuses_is_told_as_a_failure(server: str) -> None:
    said: list[str] = []
    trackers = Trackers([MLflow(RUN, f"{server}/nowhere")], warn=said.append)
    trackers.start({})
    trackers.log(1, {"x": 1.0})
    trackers.finish()
    assert said[0].startswith("MLflow.start failed: MLflowError: experiments/get-by-name: 404")
    # Its start, and the step that it was not told.
    assert trackers.metrics() == {"tracking/failed": 1, "tracking/dropped": 1}


def test_trackers_by_name_are_set_up_by_their_own_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigurationError, match="set MLFLOW_TRACKING_URI"):
        track(["mlflow"], tmp_path, run_id="a")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    names = ["console", "file", "wandb", "mlflow", "tensorboard"]
    assert len(track(names, tmp_path, run_id="a")) == 5
    with pytest.raises(ConfigurationError, match="the same each time"):
        track(["wandb"], tmp_path)
