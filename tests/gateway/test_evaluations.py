"""Evaluations: recorded in the Checkpoint's status on a real API server, by who may evaluate."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from dev.apiserver import ApiServer
from tests.api.manifests import CHECKPOINT, RUN
from tests.gateway.conftest import Gateway, Users, token

from espalier.core.names import GATEWAY_AUDIENCE
from espalier.gateway.context import STATUS_MANAGER

EVALUATOR = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: evaluator}
rules:
- {apiGroups: [espalier.dev], resources: [checkpoints], verbs: [evaluate]}
"""


@pytest.fixture(scope="session")
def evaluator(apiserver: ApiServer, users: Users) -> str:
    """The token of one who may evaluate, and nothing else."""
    space = users.namespace
    apiserver.kubectl("apply", "-n", space, "-f", "-", stdin=EVALUATOR)
    apiserver.kubectl("create", "serviceaccount", "evaluator", "-n", space)
    account = f"--serviceaccount={space}:evaluator"
    binding = ("create", "rolebinding", "evaluator", "--role=evaluator", account)
    apiserver.kubectl(*binding, "-n", space)
    return token(apiserver, space, "evaluator", GATEWAY_AUDIENCE)


@pytest.fixture
def checkpoint(apiserver: ApiServer, users: Users) -> str:
    name = f"m-{uuid.uuid4().int % 10**6:06d}"
    body = {**CHECKPOINT, "metadata": {"name": name, "namespace": users.namespace}}
    apiserver.kubectl("create", "-f", "-", stdin=json.dumps(body))
    return name


def path(users: Users, name: str) -> str:
    return f"/v1/checkpoints/{users.namespace}/{name}/evaluations"


def found(mean: float, name: str = "held-out") -> dict[str, Any]:
    return {"name": name, "tasks": 4, "metrics": {"mean_reward": mean, "pass@1": 0.25}}


def evaluations(server: ApiServer, users: Users, name: str) -> dict[str, dict[str, str]]:
    text = server.kubectl("get", "ckpt", name, "-n", users.namespace, "-o", "json")
    said = json.loads(text).get("status", {}).get("evaluations", [])
    return {one["name"]: {m["name"]: m["value"] for m in one["metrics"]} for one in said}


async def test_the_latest_of_each_name_is_kept(
    gateway: Gateway, apiserver: ApiServer, evaluator: str, checkpoint: str
) -> None:
    for body in (found(0.5), found(0.75), found(0.125, "other")):
        answer = await gateway.post(path(gateway.users, checkpoint), body, evaluator)
        assert answer.status == 200, await answer.text()
    assert evaluations(apiserver, gateway.users, checkpoint) == {
        "held-out": {"eval/held-out/mean_reward": "0.75", "eval/held-out/pass@1": "0.25"},
        "other": {"eval/other/mean_reward": "0.125", "eval/other/pass@1": "0.25"},
    }


async def test_evaluating_needs_its_own_right(
    gateway: Gateway, apiserver: ApiServer, checkpoint: str
) -> None:
    answer = await gateway.post(path(gateway.users, checkpoint), found(0.5))
    assert answer.status == 403
    assert "may not evaluate checkpoints" in (await answer.json())["detail"]
    assert evaluations(apiserver, gateway.users, checkpoint) == {}


async def test_a_checkpoint_that_is_not_there_is_named(gateway: Gateway, evaluator: str) -> None:
    answer = await gateway.post(path(gateway.users, "m-999999"), found(0.5), evaluator)
    assert (answer.status, (await answer.json())["reason"]) == (404, "CheckpointNotFound")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (found(0.5) | {"name": "Held out"}, "name"),
        (found(0.5) | {"tasks": 0}, "tasks"),
        (found(0.5) | {"metrics": {}}, "metrics"),
        (found(0.5) | {"metrics": {"a/b": 1.0}}, "metrics"),
        (found(0.5) | {"metrics": {"mean_reward": "1"}}, "metrics"),
        (found(0.5) | {"more": 1}, "more"),
    ],
)
async def test_what_is_no_evaluation_is_refused_by_field(
    gateway: Gateway, evaluator: str, checkpoint: str, body: dict[str, Any], field: str
) -> None:
    answer = await gateway.post(path(gateway.users, checkpoint), body, evaluator)
    assert answer.status == 422
    assert (await answer.json())["detail"].startswith(field)


async def test_there_is_a_most_of_evaluations(
    gateway: Gateway, evaluator: str, checkpoint: str
) -> None:
    statuses = []
    for number in range(9):
        body = found(0.5, f"set-{number}")
        answer = await gateway.post(path(gateway.users, checkpoint), body, evaluator)
        statuses.append(answer.status)
    assert statuses == [200] * 8 + [409]


@pytest.fixture
def run(apiserver: ApiServer, users: Users) -> str:
    name = f"r-{uuid.uuid4().hex[:8]}"
    body = {**RUN, "metadata": {"name": name, "namespace": users.namespace}}
    apiserver.kubectl("create", "-f", "-", stdin=json.dumps(body))
    return name


def of_base(server: ApiServer, users: Users, name: str) -> dict[str, dict[str, str]]:
    text = server.kubectl("get", "trun", name, "-n", users.namespace, "-o", "json")
    said = json.loads(text).get("status", {}).get("baseEvaluations", [])
    return {one["name"]: {m["name"]: m["value"] for m in one["metrics"]} for one in said}


async def test_figures_of_the_base_are_in_the_status_of_the_run_that_asked_it(
    gateway: Gateway, apiserver: ApiServer, run: str
) -> None:
    where = f"/v1/runs/{gateway.users.namespace}/{run}/evaluations"
    for mean in (0.5, 0.25):
        answer = await gateway.post(where, found(mean))
        assert answer.status == 200, await answer.text()
    expected = {"held-out": {"eval/held-out/mean_reward": "0.25", "eval/held-out/pass@1": "0.25"}}
    assert of_base(apiserver, gateway.users, run) == expected
    # The gateway's other field of a run, and what the operator writes, leave them alone.
    key = {"name": run, "namespace": gateway.users.namespace}
    woken = {"metadata": key, "status": {"wokenFor": "2026-01-01T00:00:00Z"}}
    await gateway.context.cluster.apply_status("TrainingRun", woken, manager=STATUS_MANAGER)
    written = {"metadata": key, "status": {"step": 3}}
    await gateway.context.cluster.apply_status("TrainingRun", written)
    assert of_base(apiserver, gateway.users, run) == expected


async def test_only_who_drives_a_run_may_write_its_bases_figures(
    gateway: Gateway, apiserver: ApiServer, run: str
) -> None:
    where = f"/v1/runs/{gateway.users.namespace}/{run}/evaluations"
    answer = await gateway.post(where, found(0.5), gateway.users.reader)
    assert answer.status == 403
    answer = await gateway.post(f"{where.replace(run, 'absent')}", found(0.5))
    assert (answer.status, (await answer.json())["reason"]) == (404, "RunNotFound")
    assert of_base(apiserver, gateway.users, run) == {}


async def test_rounds_without_a_step_are_in_the_status_of_the_run_that_had_them(
    gateway: Gateway, apiserver: ApiServer, run: str
) -> None:
    namespace = gateway.users.namespace
    body = json.loads(apiserver.kubectl("get", "trun", run, "-n", namespace, "-o", "json"))
    gateway.world.put("TrainingRun", run, namespace, metadata=body["metadata"], spec=body["spec"])
    told = {"step": 1, "rounds": 2, "reason": "RewardsUninformative", "message": "all equal"}
    where = f"/v1/runs/{namespace}/{run}/barren-rounds"
    for message in ("all equal", "all failed"):
        answer = await gateway.request("PUT", where, json=told | {"message": message})
        assert answer.status == 200, await answer.text()
    body = json.loads(apiserver.kubectl("get", "trun", run, "-n", namespace, "-o", "json"))
    assert body["status"]["barrenRounds"] == told | {"message": "all failed"}
    refused = await gateway.request("PUT", where, gateway.users.reader, json=told)
    assert refused.status == 403
