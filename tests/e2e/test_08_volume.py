"""What the containers of a model's pods see of the claim: a probe in place of each."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from tests.e2e.kubectl import Kubectl, Object, until_ready
from tests.e2e.manifests import model

from espalier.api.checkpoint import Checkpoint
from espalier.core.manifests.collector import collector_job
from espalier.core.manifests.installation import ChildSettings, Images
from espalier.core.names import importer_name

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
folders += [f"bases/.imports/{own}", f"checkpoints/{own}", f"models/{own}"]
print(json.dumps({
    "sees": {f: sorted(os.listdir(f"/weights/{f}")) for f in sorted(os.listdir("/weights"))},
    "writes": {f: writes(f) for f in folders},
}))
"""
READ_ONLY = "Read-only file system"
ABSENT = "No such file or directory"


def in_place_of(workload: Object, container: Object, name: str, *arguments: str) -> Object:
    """A pod as the workload's, where the probe runs in place of a container, and no other does.

    But the one that makes folders: it goes before.
    """
    spec = workload["spec"]["template"]["spec"]
    before = [init for init in spec["initContainers"] if init["name"] == "folders"]
    kept = ("name", "image", "env", "volumeMounts", "securityContext")
    command = ["python", "-c", PROBE, *arguments]
    probe = {field: container[field] for field in kept} | {"command": command}
    alone = {"containers": [probe], "initContainers": before, "restartPolicy": "Never"}
    pod = {**spec, **alone}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}


def probed(
    kubectl: Kubectl, workload: Object, model_name: str, container: str = ""
) -> dict[str, Any]:
    """What a probe in place of a container, by default the main one, saw and could write."""
    spec = workload["spec"]["template"]["spec"]
    (main,) = spec["containers"]
    every = (main, *spec["initContainers"])
    (taken,) = [one for one in every if one["name"] == (container or main["name"])]
    name = f"probe-{workload['metadata']['name']}-{uuid.uuid4().hex[:6]}"
    kubectl.apply(in_place_of(workload, taken, name, model_name))

    def ended() -> bool:
        return bool(kubectl.get("pod", name)["status"]["phase"] in ("Succeeded", "Failed"))

    kubectl.wait("the probe to end", ended, timeout=120, show=[f"pod {name}", "events"])
    seen: dict[str, Any] = json.loads(kubectl("logs", name, "-c", taken["name"]))
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
    seen = probed(kubectl, kubectl.get("statefulset", f"{tiny}-trainer"), tiny)
    assert seen["sees"] == {
        "bases": [base_of(kubectl, tiny)],
        "checkpoints": [tiny],
        "models": [tiny],
    }
    assert seen["writes"] == {
        **dict.fromkeys(("bases", "checkpoints", "models"), READ_ONLY),
        **dict.fromkeys((f"checkpoints/{tiny}", f"models/{tiny}"), "written"),
        f"bases/.imports/{tiny}": ABSENT,
    }


def test_a_sampler_sees_its_models_checkpoints_and_its_parents_and_writes_nothing(
    kubectl: Kubectl, tiny: str, fork: str
) -> None:
    for name, checkpoints in ((tiny, [tiny]), (fork, [fork, tiny])):
        seen = probed(kubectl, kubectl.get("deployment", f"{name}-rollout"), name)
        bases = [base_of(kubectl, name)]
        assert seen["sees"] == {"bases": bases, "checkpoints": checkpoints}
        assert seen["writes"] == {
            **dict.fromkeys(("bases", "checkpoints", f"checkpoints/{name}"), READ_ONLY),
            **dict.fromkeys(("models", f"models/{name}", f"bases/.imports/{name}"), ABSENT),
        }


def test_an_importer_writes_one_folder_of_its_own_and_sees_nothing_else(
    kubectl: Kubectl, trained: str, tiny: str, fork: str
) -> None:
    del trained, fork
    seen = probed(kubectl, kubectl.get("job", importer_name(tiny)), tiny, "importer")
    assert seen["sees"] == {"bases": [".imports"]}
    others = ("checkpoints", "models", f"checkpoints/{tiny}", f"models/{tiny}")
    assert seen["writes"] == {
        "bases": READ_ONLY,
        f"bases/.imports/{tiny}": "written",
        **dict.fromkeys(others, ABSENT),
    }


def test_what_puts_an_import_in_place_sees_bases_and_no_models_checkpoints_or_logs(
    kubectl: Kubectl, trained: str, tiny: str, fork: str
) -> None:
    del trained, fork
    seen = probed(kubectl, kubectl.get("job", importer_name(tiny)), tiny, "place")
    assert {*seen["sees"]} == {"bases"}
    assert base_of(kubectl, tiny) in seen["sees"]["bases"]
    others = ("checkpoints", "models", f"checkpoints/{tiny}", f"models/{tiny}")
    assert seen["writes"] == {
        **dict.fromkeys(("bases", f"bases/.imports/{tiny}"), "written"),
        **dict.fromkeys(others, ABSENT),
    }


def collector_of(kubectl: Kubectl, model_name: str, *, orphaned: bool) -> Object:
    """The Job that the operator would make to remove a checkpoint of the model."""
    like = kubectl.get("statefulset", f"{model_name}-trainer")["spec"]["template"]["spec"]
    image = like["containers"][0]["image"]
    settings = ChildSettings(
        Images(trainer=image, rollout=image, runner=image),
        public_keys="",
        gateway_url="",
        pull_secrets=tuple(secret["name"] for secret in like.get("imagePullSecrets", ())),
    )
    head = kubectl.get("checkpointhead", model_name)["status"]["current"]["name"]
    leaving = Checkpoint.model_validate(kubectl.get("checkpoint", head))
    claim = kubectl.get("trainablemodel", model_name)["spec"]["storage"]["persistentVolumeClaim"]
    return collector_job([leaving], claim["claimName"], settings, orphaned=orphaned)


@pytest.mark.parametrize("orphaned", [False, True], ids=["of a model", "with its model"])
def test_a_collector_sees_its_models_checkpoints_and_log_alone(
    kubectl: Kubectl, trained: str, tiny: str, fork: str, *, orphaned: bool
) -> None:
    del trained, fork
    seen = probed(kubectl, collector_of(kubectl, tiny, orphaned=orphaned), tiny)
    assert seen["sees"] == {"checkpoints": [tiny], "models": [tiny]}
    assert seen["writes"] == {
        **dict.fromkeys(("checkpoints", "models"), READ_ONLY),
        **dict.fromkeys(("bases", f"bases/.imports/{tiny}"), ABSENT),
        f"checkpoints/{tiny}": "written",
        f"models/{tiny}": "written" if orphaned else READ_ONLY,
    }
