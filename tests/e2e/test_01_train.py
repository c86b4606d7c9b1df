"""A run on a real cluster: it trains, survives the death of every part, and records a tree."""

from __future__ import annotations

import itertools

import pytest
from tests.e2e.gateway import Gateway
from tests.e2e.kubectl import Kubectl, condition, is_true
from tests.e2e.run import SHOW, STEPS, lineage, served

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]


def metric(checkpoint: dict, name: str) -> float:
    """A figure of a Checkpoint's status."""
    return next(float(m["value"]) for m in checkpoint["status"]["metrics"] if m["name"] == name)


def test_every_step_is_recorded_once_though_every_part_died(kubectl: Kubectl, trained: str) -> None:
    checkpoints = lineage(kubectl, "tiny")
    assert [c["spec"]["step"] for c in checkpoints] == list(range(1, STEPS + 1))
    assert [c["metadata"]["name"] for c in checkpoints] == [
        f"tiny-{step:06d}" for step in range(1, STEPS + 1)
    ]
    assert "parentRef" not in checkpoints[0]["spec"]
    for parent, child in itertools.pairwise(checkpoints):
        assert child["spec"]["parentRef"]["name"] == parent["metadata"]["name"]
    assert len({c["spec"]["digest"] for c in checkpoints}) == STEPS
    assert kubectl.get("trainingrun", trained)["status"]["step"] == STEPS


def test_trainer_and_sampler_agree_at_every_step(kubectl: Kubectl, trained: str) -> None:
    for checkpoint in lineage(kubectl, "tiny"):
        assert metric(checkpoint, "logprob/difference_max") < 1e-4, checkpoint["metadata"]["name"]


def test_the_head_follows_the_newest_checkpoint(
    kubectl: Kubectl, trained: str, gateway: Gateway
) -> None:
    newest = lineage(kubectl, "tiny")[-1]
    head = served(kubectl, "tiny", newest["metadata"]["name"])
    assert head["status"]["current"]["digest"] == newest["spec"]["digest"]
    assert head["status"]["term"] == 1
    answer = gateway.serves("tiny", newest["metadata"]["name"])
    assert answer != gateway.complete("tiny@base")


def test_a_finished_run_frees_its_trainer_and_runner(kubectl: Kubectl, trained: str) -> None:
    kubectl.wait(
        "trainer and runner pods to be gone",
        lambda: (
            not [
                pod
                for role in ("trainer", "runner")
                for pod in kubectl.list("pods", f"espalier.dev/role={role}")
                if pod["status"]["phase"] not in ("Succeeded", "Failed")
            ]
        ),
        show=SHOW,
    )


def test_the_operator_owns_nothing_under_any_users_spec(kubectl: Kubectl, trained: str) -> None:
    for kind, name in (
        ("trainablemodel", "tiny"),
        ("trainingrun", "digits"),
    ):
        body = kubectl.get(kind, name)
        owners = {
            entry["manager"]
            for entry in body["metadata"]["managedFields"]
            if "f:spec" in entry["fieldsV1"] or "f:metadata" in entry["fieldsV1"]
        }
        assert owners == {"kubectl-client-side-apply"}, (kind, owners)


def test_the_tables_read_as_documented(kubectl: Kubectl, trained: str) -> None:
    def marked() -> str:
        header, *rows = kubectl("get", "checkpoints").splitlines()
        return header if any("tiny-000012" in row and "> tiny" in row for row in rows) else ""

    header = kubectl.wait("the head's mark on tiny-000012", marked, show=["checkpoints"])
    assert header.split() == ["NAME", "STEP", "PARENT", "BRANCH", "REWARD", "HEAD", "READY", "AGE"]
    for kind in ("trun", "tmodel", "ckhead"):
        assert kubectl("get", kind)


def test_unknown_models_are_answered_with_the_nearest_names(gateway: Gateway, trained: str) -> None:
    reply = gateway.post("/v1/completions", {"model": "tinny", "prompt": "1="})
    assert reply.status_code == 404
    assert "tiny" in reply.text


def test_a_caller_without_a_token_or_right_is_refused(
    kubectl: Kubectl, gateway: Gateway, trained: str
) -> None:
    body = {"model": "tiny", "prompt": "1=", "max_tokens": 1}
    nobody = Gateway(gateway.url, "not-a-token")
    assert nobody.post("/v1/completions", body).status_code == 401
    token = kubectl("create", "token", "default", "--audience=espalier-gateway").strip()
    stranger = Gateway(gateway.url, token)
    refused = stranger.post("/v1/completions", body)
    assert refused.status_code == 403
    assert "trainablemodels" in refused.text


def test_conditions_say_what_a_person_needs(kubectl: Kubectl, trained: str) -> None:
    body = kubectl.get("trainingrun", trained)
    assert condition(body, "Succeeded")["reason"] == "StepsCompleted"
    assert is_true(body, "Ready")
    assert body["status"]["progress"]["percent"] == 100
