"""What the containers of trainer and sampler see of the claim: a probe in place of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.e2e.kubectl import Kubectl, Object, until_ready
from tests.e2e.manifests import model

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

PROBE = """
import json, os, sys
def writes(folder):
    try:
        path = os.path.join("/weights", folder, "probe")
        open(path, "w").close()
        os.unlink(path)
        return "written"
    except OSError as error:
        return error.strerror
own = sys.argv[1]
folders = ["bases", "checkpoints", "models"]
print(json.dumps({
    "sees": {f: sorted(os.listdir(f"/weights/{f}")) for f in sorted(os.listdir("/weights"))},
    "writes": {f: writes(f) for f in (*folders, f"checkpoints/{own}", f"models/{own}")},
}))
"""
READ_ONLY = "Read-only file system"
ABSENT = "No such file or directory"


def in_place_of(workload: Object, name: str, *arguments: str) -> Object:
    """A pod as the workload's, whose container runs the probe and no more."""
    spec = workload["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    kept = ("name", "image", "env", "volumeMounts", "securityContext")
    command = ["python", "-c", PROBE, *arguments]
    probe = {field: container[field] for field in kept} | {"command": command}
    pod = {**spec, "containers": [probe], "restartPolicy": "Never"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}


def probed(kubectl: Kubectl, kind: str, of: str, model_name: str) -> dict[str, Any]:
    """What a probe in place of a workload's container saw, and whether it could write."""
    workload = kubectl.get(kind, of)
    name = f"probe-{of}"
    kubectl.apply(in_place_of(workload, name, model_name))

    def ended() -> bool:
        return bool(kubectl.get("pod", name)["status"]["phase"] in ("Succeeded", "Failed"))

    kubectl.wait("the probe to end", ended, timeout=120, show=[f"pod {name}", "events"])
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    seen: dict[str, Any] = json.loads(kubectl("logs", name, "-c", container["name"]))
    kubectl("delete", "pod", name, "--wait=false")
    return seen


def base_of(kubectl: Kubectl, name: str) -> str:
    digest: str = kubectl.get("trainablemodel", name)["status"]["resolved"]["digest"]
    return digest.replace(":", "-")


@pytest.fixture
def fork(kubectl: Kubectl, trained: str, tiny: str) -> Iterator[str]:
    """A model on the same claim that starts from a checkpoint of the first."""
    del trained
    start = kubectl.get("checkpointhead", tiny)["status"]["current"]["name"]
    kubectl.apply(model("apart", checkpoint=start))
    until_ready(kubectl, "apart")
    yield "apart"
    kubectl("delete", "trainablemodel", "apart")


def test_a_trainer_writes_its_own_folders_and_nothing_else_of_the_claim(
    kubectl: Kubectl, trained: str, tiny: str, fork: str
) -> None:
    del trained, fork  # The claim holds a base, checkpoints and logs, and another's folder.
    seen = probed(kubectl, "statefulset", f"{tiny}-trainer", tiny)
    assert seen["sees"] == {
        "bases": [base_of(kubectl, tiny)],
        "checkpoints": [tiny],
        "models": [tiny],
    }
    assert seen["writes"] == {
        **dict.fromkeys(("bases", "checkpoints", "models"), READ_ONLY),
        **dict.fromkeys((f"checkpoints/{tiny}", f"models/{tiny}"), "written"),
    }


def test_a_sampler_sees_its_models_checkpoints_and_its_parents_and_writes_nothing(
    kubectl: Kubectl, tiny: str, fork: str
) -> None:
    for name, checkpoints in ((tiny, [tiny]), (fork, [fork, tiny])):
        seen = probed(kubectl, "deployment", f"{name}-rollout", name)
        bases = [base_of(kubectl, name)]
        assert seen["sees"] == {"bases": bases, "checkpoints": checkpoints}
        assert seen["writes"] == {
            **dict.fromkeys(("bases", "checkpoints", f"checkpoints/{name}"), READ_ONLY),
            **dict.fromkeys(("models", f"models/{name}"), ABSENT),
        }
