"""tree, curve and watch against a real API server, through kubectl."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from dev.apiserver import BINARIES, ApiServer
from tests.cli.checkpoints import manifests
from tests.runner.standin import StandIn, spec
from typer.testing import CliRunner, Result

from espalier.api.run.taskset import Taskset
from espalier.cli.failure import CliError
from espalier.cli.heldout_tasks import choose
from espalier.cli.kubectl import Kubectl
from espalier.cli.main import app
from espalier.runner.jsonl import JsonlTasks

Command = Any


def condition(kind: str, reason: str, message: str = "") -> dict[str, Any]:
    return {
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


def apply(server: ApiServer, namespace: str, *manifests: dict[str, Any]) -> None:
    """Objects and their statuses, as user and operator would write them."""
    server.kubectl("apply", "-n", namespace, "-f", "-", stdin=_list(manifests))
    if told := [manifest for manifest in manifests if "status" in manifest]:
        arguments = ("--server-side", "--subresource=status", "--force-conflicts", "-f", "-")
        server.kubectl("apply", "-n", namespace, *arguments, stdin=_list(told))


def _list(manifests: Sequence[dict[str, Any]]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})


def model(**status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "espalier.dev/v1alpha1",
        "kind": "TrainableModel",
        "metadata": {"name": "arith"},
        "spec": {
            "source": {"base": {"image": "registry.example/model:1"}},
            "storage": {"persistentVolumeClaim": {"claimName": "weights"}},
        },
        "status": {"observedGeneration": 1, **status},
    }


def training_run(*conditions: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "espalier.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": "run"},
        "spec": spec(),
        "status": {"observedGeneration": 1, "step": 3, "conditions": list(conditions)},
    }


@pytest.fixture
def espalier(apiserver: ApiServer, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line of a user of the namespace."""
    monkeypatch.setenv("KUBECONFIG", str(apiserver.kubeconfig))
    monkeypatch.setenv("PATH", f"{BINARIES}:{os.environ['PATH']}")

    def command(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["-n", namespace, *arguments])

    return command


def test_tree_draws_branches_newest_first_and_marks_the_head(
    apiserver: ApiServer, namespace: str, espalier: Command
) -> None:
    branches = [
        {"name": "main", "firstStep": 1, "lastStep": 3, "tip": "arith-000003"},
        {"name": "b2", "base": "arith-000001", "firstStep": 2, "tip": "arith-b2-000003"},
    ]
    tree = {"checkpoints": 5, "branches": branches}
    apply(apiserver, namespace, model(tree=tree), *manifests())
    done = espalier("tree", "arith")
    assert done.exit_code == 0, done.output
    drawn = done.output.splitlines()
    assert [line.split()[-3:] for line in drawn if "> arith" in line] == [["0.750", ">", "arith"]]
    order = [name for line in drawn for name in line.split() if name.startswith("arith-")]
    assert sorted(order) == sorted(manifest["metadata"]["name"] for manifest in manifests())
    assert order.index("arith-000003") < order.index("arith-000001")
    assert order.index("arith-b2-000003") < order.index("arith-000001")
    assert drawn[-1] == "o base"


def test_tree_of_a_fresh_model_says_that_its_slug_serves_the_base(
    apiserver: ApiServer, namespace: str, espalier: Command
) -> None:
    apply(apiserver, namespace, model())
    assert espalier("tree", "arith").output == (
        "arith has no checkpoints: its slug serves the base\n"
    )


def test_curve_draws_and_writes_a_picture(
    apiserver: ApiServer, namespace: str, espalier: Command, tmp_path: Path
) -> None:
    apply(apiserver, namespace, *manifests())
    done = espalier("curve", "arith", "--png", str(tmp_path / "reward.png"))
    assert done.exit_code == 0, done.output
    assert "reward/mean of arith" in done.output
    assert (tmp_path / "reward.png").stat().st_size > 10_000


def test_curve_of_an_unknown_metric_names_the_known_ones(
    apiserver: ApiServer, namespace: str, espalier: Command
) -> None:
    apply(apiserver, namespace, manifests()[0])
    done = espalier("curve", "arith", "--metric", "reward/median")
    assert done.exit_code == 1
    assert "error: no checkpoint of arith has reward/median; there are: reward/mean" in done.output


def test_watch_ends_when_the_run_has_succeeded(
    apiserver: ApiServer, namespace: str, espalier: Command
) -> None:
    apply(apiserver, namespace, training_run(condition("Succeeded", "StepsCompleted")))
    done = espalier("watch", "run", "--timeout", "120")
    assert done.exit_code == 0, done.output
    assert done.output.endswith("run succeeded: step 3/3  StepsCompleted\n")


def test_watch_of_a_stalled_run_fails_with_reason_and_message(
    apiserver: ApiServer, namespace: str, espalier: Command
) -> None:
    apply(apiserver, namespace, training_run(condition("Stalled", "TasksetInvalid", "no line")))
    done = espalier("watch", "run", "--timeout", "120")
    assert done.exit_code == 1
    assert "error: run is Stalled, TasksetInvalid: no line" in done.output


def test_watch_gives_up_at_its_timeout_and_says_where_the_run_stands(
    apiserver: ApiServer, namespace: str, espalier: Command
) -> None:
    apply(apiserver, namespace, training_run(condition("Reconciling", "ModelBusy", "another run")))
    done = espalier("watch", "run", "--timeout", "0")
    assert done.exit_code == 1
    assert "run has not ended within 0 s: step 3/3  ModelBusy: another run" in done.output


def test_tasks_of_a_claim_are_evaluated_from_a_file_alone(tmp_path: Path) -> None:
    claim = {"claimName": "data", "path": "train.jsonl"}
    taskset = Taskset.model_validate({"seed": 1, "persistentVolumeClaim": claim})
    file = tmp_path / "others.jsonl"
    file.write_text('{"prompt": "1", "answer": "1"}')
    cluster = Kubectl(namespace="ml")
    assert len(choose(taskset, cluster, seed=2, size=1, file=file).indices) == 1
    with pytest.raises(CliError, match=r"claim/data/train\.jsonl, which this command does not"):
        choose(taskset, cluster, seed=2, size=1, file=None)


async def test_evaluate_asks_the_lines_of_a_config_map_that_the_run_leaves_out(
    apiserver: ApiServer,
    namespace: str,
    espalier: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    rows = [json.dumps({"prompt": f"{digit}=", "answer": str(digit)}) for digit in range(10)]
    data = {"tasks.jsonl": "\n".join(rows)}
    digits = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "digits"}}
    apply(apiserver, namespace, {**digits, "data": data})
    gateway = StandIn()
    async with TestServer(gateway.app()) as running:
        monkeypatch.setenv("ESPALIER_GATEWAY_URL", str(running.make_url("/")))
        monkeypatch.setenv("ESPALIER_TOKEN", "secret")
        done = await asyncio.to_thread(espalier, "evaluate", "run", "--seed", "5", "--size", "2")
        assert done.output == "tiny: mean reward 1.000 on 2 held-out tasks\n"
        more = await asyncio.to_thread(espalier, "evaluate", "run", "--seed", "5", "--size", "3")
        assert "only 2 of 3 tasks differ from those that the run trains on" in more.output
        taskset = Taskset.model_validate(gateway.spec["taskset"])
    path = tmp_path / "tasks.jsonl"
    path.write_text(data["tasks.jsonl"])
    trained = JsonlTasks(taskset, "digits", path)
    asked = {sample["messages"][-1]["content"] for sample in gateway.samples}
    assert not asked & {trained.task(index).messages[0].content for index in range(8)}


@pytest.mark.parametrize("command", [("tree", "nobody"), ("watch", "nobody")])
def test_an_object_that_is_not_there_is_one_line(espalier: Command, command: Any) -> None:
    done = espalier(*command)
    assert done.exit_code == 2
    assert done.output.startswith("error: Error from server (NotFound)")
    assert len(done.output.splitlines()) == 1
