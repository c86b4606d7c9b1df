"""The run of the session: 12 steps on digit tasks."""

from __future__ import annotations

from tests.e2e.kubectl import Kubectl, Object, is_true

STEPS = 12
SHOW = ["trainingrun digits", "checkpointhead tiny", "pods -o wide", "events"]


def kill(kubectl: Kubectl, selector: str) -> None:
    """Deletes pods at once, as a lost node would."""
    kubectl("delete", "pod", "-l", selector, "--grace-period=0", "--force", "--wait=false")


def lineage(kubectl: Kubectl, model: str) -> list[Object]:
    """The model's Checkpoints in the order of their steps."""
    items = [
        item
        for item in kubectl.list("checkpoints")
        if item["spec"]["modelRef"]["name"] == model and item["spec"]["branch"] == "main"
    ]
    return sorted(items, key=lambda item: item["spec"]["step"])


def served(kubectl: Kubectl, name: str, checkpoint: str) -> Object:
    """Waits until a head serves a checkpoint; its body."""

    def check() -> Object | None:
        body = kubectl.get("checkpointhead", name)
        current = body["status"]["current"]["name"]
        return body if current == checkpoint and is_true(body, "Ready") else None

    found: Object = kubectl.wait(
        f"head {name} to serve {checkpoint}",
        check,
        show=[f"checkpointhead {name}", "pods", "events"],
    )
    return found
