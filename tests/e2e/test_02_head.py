"""Editing the head rolls back, branches and returns; forks start from any checkpoint."""

from __future__ import annotations

import pytest
from tests.e2e.gateway import Gateway
from tests.e2e.kubectl import Kubectl, KubectlError, Object, condition, is_true, until_ready
from tests.e2e.manifests import head, model, run
from tests.e2e.run import lineage, served

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


def two_branches(kubectl: Kubectl) -> dict[str, Object] | None:
    """The branches of tiny's tree by name, once there are two."""
    branches = kubectl.get("tmodel", "tiny")["status"]["tree"]["branches"]
    return {branch["name"]: branch for branch in branches} if len(branches) == 2 else None


def test_pinning_the_head_serves_the_old_weights_and_unpinning_returns(
    kubectl: Kubectl, trained: str, gateway: Gateway
) -> None:
    newest = gateway.complete("tiny")
    kubectl.apply(head("tiny", "Pin", "tiny-000004"))
    pinned = served(kubectl, "tiny", "tiny-000004")
    assert pinned["status"]["term"] == 2
    assert pinned["status"]["history"][0]["reason"] == "Pinned"
    assert pinned["status"]["previous"]["name"] == "tiny-000012"
    assert gateway.serves("tiny", "tiny-000004") != newest
    kubectl.apply(head("tiny", "Track"))
    assert served(kubectl, "tiny", "tiny-000012")["status"]["term"] == 3
    assert gateway.serves("tiny", "tiny-000012") == newest


def test_branching_grows_a_second_line_from_the_pinned_checkpoint(
    kubectl: Kubectl, trained: str, gateway: Gateway
) -> None:
    kubectl.apply(head("tiny", "Pin", "tiny-000004", onPin="Branch"))
    term = served(kubectl, "tiny", "tiny-000004")["status"]["term"]
    kubectl("patch", "trainingrun", trained, "--type=merge", "-p", '{"spec": {"steps": 14}}')
    kubectl.wait(
        "two more steps",
        lambda: (
            is_true(kubectl.get("trainingrun", trained), "Succeeded")
            and kubectl.get("trainingrun", trained)["status"]["step"] == 14
        ),
        timeout=300,
        show=["trainingrun digits", "checkpointhead tiny", "pods", "events"],
    )
    grown = kubectl.get("checkpoint", f"tiny-b{term}-000006")
    assert grown["spec"]["parentRef"]["name"] == f"tiny-b{term}-000005"
    first = kubectl.get("checkpoint", f"tiny-b{term}-000005")
    assert first["spec"]["parentRef"]["name"] == "tiny-000004"
    branches = kubectl.wait("the tree to show both branches", lambda: two_branches(kubectl))
    assert branches["main"]["lastStep"] == 12
    assert branches["main"]["superseded"] is True
    assert branches[f"b{term}"]["base"] == "tiny-000004"
    assert (branches[f"b{term}"]["firstStep"], branches[f"b{term}"]["lastStep"]) == (5, 6)
    kubectl.apply(head("tiny", "Track"))
    served(kubectl, "tiny", f"tiny-b{term}-000006")
    kubectl.wait(
        "the old line's tip to be superseded",
        lambda: (
            condition(kubectl.get("checkpoint", "tiny-000012"), "Superseded")["status"] == "True"
        ),
        show=["checkpoint tiny-000012"],
    )


def test_a_fork_starts_at_a_checkpoint_of_another_model_and_goes_its_own_way(
    kubectl: Kubectl, trained: str, gateway: Gateway
) -> None:
    source = gateway.complete("tiny@tiny-000006")
    kubectl.apply(model("fork", checkpoint="tiny-000006"))
    until_ready(kubectl, "fork")
    assert gateway.complete("fork") == source
    kubectl.apply(run("fork", "fork", 2))
    kubectl.wait(
        "run fork to succeed",
        lambda: is_true(kubectl.get("trun", "fork"), "Succeeded"),
        timeout=300,
        show=["trun fork", "ckhead fork", "pods -o wide", "events"],
    )
    chain = lineage(kubectl, "fork")
    assert [c["metadata"]["name"] for c in chain] == ["fork-000007", "fork-000008"]
    assert chain[0]["spec"]["parentRef"]["name"] == "tiny-000006"
    served(kubectl, "fork", "fork-000008")
    assert gateway.serves("fork", "fork-000008") != source
    assert gateway.complete("tiny@tiny-000006") == source


def test_a_pin_that_cannot_be_served_is_explained_and_changes_nothing(
    kubectl: Kubectl, trained: str, gateway: Gateway
) -> None:
    before = gateway.complete("tiny")
    current = kubectl.get("ckhead", "tiny")["status"]["current"]
    for name, reason in (("tiny-000999", "CheckpointNotFound"), ("fork-000007", "WrongModel")):
        kubectl.apply(head("tiny", "Pin", name))
        body = kubectl.wait(
            f"reason {reason}",
            lambda reason=reason: (
                found
                if condition(found := kubectl.get("ckhead", "tiny"), "Stalled")["reason"] == reason
                else None
            ),
            show=["ckhead tiny"],
        )
        assert body["status"]["current"] == current
        assert gateway.complete("tiny") == before
    kubectl.apply(head("tiny", "Track"))
    served(kubectl, "tiny", current["name"])


def test_a_pin_without_a_checkpoint_is_refused_at_apply(kubectl: Kubectl, trained: str) -> None:
    with pytest.raises(KubectlError, match="mode Pin needs checkpointRef"):
        kubectl.apply(head("tiny", "Pin"))
