"""What a trainer's container sees of the claim: a probe in its place, with its mounts."""

from __future__ import annotations

import json

import pytest
from tests.e2e.kubectl import Kubectl, Object

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

PROBE = """
import json, os
def writes(folder):
    try:
        path = os.path.join("/weights", folder, "probe")
        open(path, "w").close()
        os.unlink(path)
        return "written"
    except OSError as error:
        return error.strerror
folders = ["bases", "checkpoints", "models", "checkpoints/MODEL", "models/MODEL"]
print(json.dumps({
    "writes": {folder: writes(folder) for folder in folders},
    "logs": os.listdir("/weights/models"),
    "all": sorted(os.listdir("/weights")),
}))
"""


def in_place_of(workload: Object, name: str, script: str) -> Object:
    """A pod as the workload's, whose container runs a script of Python and no more."""
    spec = workload["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    kept = ("name", "image", "env", "volumeMounts", "securityContext")
    probe = {field: container[field] for field in kept} | {"command": ["python", "-c", script]}
    pod = {**spec, "containers": [probe], "restartPolicy": "Never"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}


def test_a_trainer_writes_its_own_folders_and_nothing_else_of_the_claim(
    kubectl: Kubectl, trained: str, tiny: str
) -> None:
    del trained  # The claim holds a base, checkpoints and logs by then.
    trainer = kubectl.get("statefulset", f"{tiny}-trainer")
    kubectl.apply(in_place_of(trainer, "probe", PROBE.replace("MODEL", tiny)))

    def ended() -> bool:
        return bool(kubectl.get("pod", "probe")["status"]["phase"] in ("Succeeded", "Failed"))

    kubectl.wait("the probe to end", ended, timeout=120, show=["pod probe", "events"])
    seen = json.loads(kubectl("logs", "probe", "-c", "trainer"))
    refused = "Read-only file system"
    assert seen["writes"] == {
        **dict.fromkeys(("bases", "checkpoints", "models"), refused),
        **dict.fromkeys((f"checkpoints/{tiny}", f"models/{tiny}"), "written"),
    }
    assert seen["logs"] == [tiny]
    assert seen["all"] == ["bases", "checkpoints", "models"]
    kubectl("delete", "pod", "probe", "--wait=false")
