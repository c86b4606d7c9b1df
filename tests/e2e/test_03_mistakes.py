"""A user's mistakes end in a condition with reason and remedy; nothing crash-loops or is lost."""

from __future__ import annotations

import pytest
from tests.e2e.gateway import Gateway
from tests.e2e.kubectl import Kubectl, Object, condition
from tests.e2e.manifests import client_run, model, run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def stalled(kubectl: Kubectl, kind: str, name: str) -> Object:
    """Waits for the condition Stalled; it."""

    def check() -> Object | None:
        found = condition(kubectl.get(kind, name), "Stalled")
        return found if found["status"] == "True" else None

    result: Object = kubectl.wait(
        f"{kind} {name} to be Stalled",
        check,
        timeout=180,
        show=[f"{kind} {name}", "pods", "events"],
    )
    return result


def test_an_unknown_dataset_names_the_field(kubectl: Kubectl, tiny: str, gateway: Gateway) -> None:
    taskset = {"seed": 1, "size": 8, "reasoningGym": {"dataset": "no_such_dataset"}}
    kubectl.apply(run("typo", tiny, 1, taskset=taskset))
    problem = stalled(kubectl, "trainingrun", "typo")
    assert problem["reason"] == "TasksetInvalid"
    assert "taskset.reasoningGym.dataset" in problem["message"]
    pods = kubectl.list("pods", "espalier.dev/run=typo,espalier.dev/role=runner")
    assert len(pods) <= 1
    kubectl("delete", "trainingrun", "typo", "--wait=true")


def test_an_image_without_a_model_is_explained(
    kubectl: Kubectl, tiny: str, images: dict[str, str]
) -> None:
    kubectl.apply(model("hollow", images["operator"]))
    problem = stalled(kubectl, "trainablemodel", "hollow")
    assert problem["reason"] == "BaseUnreadable"
    assert "/models" in problem["message"]
    kubectl("delete", "trainablemodel", "hollow", "--wait=true")


def test_a_second_run_on_a_model_waits_for_the_first(kubectl: Kubectl, tiny: str) -> None:
    suspended = {"suspend": True}
    kubectl.apply(client_run("first", tiny, 1, **suspended))
    kubectl("patch", "trun", "first", "--type=merge", "-p", '{"spec": {"suspend": false}}')
    kubectl.wait(
        "run first to hold the model",
        lambda: (
            condition(kubectl.get("trun", "first"), "Ready")["reason"]
            not in ("", "Suspended", "ModelBusy")
        ),
        show=["trun first"],
    )
    kubectl.apply(client_run("second", tiny, 1))
    kubectl.wait(
        "run second to wait with ModelBusy",
        lambda: condition(kubectl.get("trun", "second"), "Ready")["reason"] == "ModelBusy",
        show=["trun second"],
    )
    kubectl("delete", "trun", "first", "second", "--wait=true")
    kubectl.wait(
        "the trainer to be freed",
        lambda: not kubectl.list("pods", "espalier.dev/role=trainer,espalier.dev/model=tiny"),
        show=["pods"],
    )
