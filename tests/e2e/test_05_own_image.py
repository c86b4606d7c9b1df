"""A run that plays the user's own function in the user's own image, beside the runner."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.kubectl import Kubectl, Object, is_true
from tests.e2e.manifests import run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
SHOW = ["trainingrun own-image", "pods -l espalier.dev/run=own-image", "events"]
STEPS = 2


@pytest.fixture(scope="session")
def image(kubectl: Kubectl) -> str:
    """The user's image, built as that of an example is."""
    command = [ROOT / "dev" / "example-image.sh", "tests/e2e/own_image"]
    made = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=240
    )
    return made.stdout.strip()


def played(kubectl: Kubectl, image: str, model: str) -> None:
    """Applies the run."""
    functions = {"tasks": "digits:tasks", "rollout": "digits:rollout"}
    source: dict[str, Any] = {"image": image, **functions, "maxTurns": 2}
    taskset = {"seed": 1, "size": 8, "onError": "Zero", "python": source}
    kubectl.apply(run("own-image", model, STEPS, taskset=taskset, groupSize=4, groupsPerStep=2))


def environment(pod: Object) -> Object:
    """How the user's container stands."""
    found: Object = next(
        status
        for status in pod["status"]["initContainerStatuses"]
        if status["name"] == "environment"
    )
    return found


def test_it_trains_though_the_users_process_died_and_was_given_no_token(
    kubectl: Kubectl, tiny: str, image: str
) -> None:
    before = {c["metadata"]["name"] for c in kubectl.list("checkpoints")}
    played(kubectl, image, tiny)
    restarts = kubectl.wait(
        "the user's container to be started again",
        lambda: [
            environment(pod)["restartCount"]
            for pod in kubectl.list("pods", "espalier.dev/run=own-image,espalier.dev/role=runner")
            if environment(pod)["restartCount"]
        ],
        timeout=120,
        show=SHOW,
    )
    assert restarts == [1]
    kubectl.wait(
        "run own-image to succeed",
        lambda: is_true(kubectl.get("trainingrun", "own-image"), "Succeeded"),
        timeout=120,
        show=SHOW,
    )
    made = [c for c in kubectl.list("checkpoints") if c["metadata"]["name"] not in before]
    metrics = [
        {m["name"]: float(m["value"]) for m in c["status"]["metrics"]}
        for c in sorted(made, key=lambda c: c["spec"]["step"])
    ]
    assert len(metrics) == STEPS
    # What was played in the process that ended is counted by its cause; nothing failed otherwise.
    assert metrics[0]["rollout/scorer_errors"] == metrics[0]["rollout/scorer_errors_died"] > 0
    assert metrics[1]["rollout/scorer_errors"] == 0
    kubectl("delete", "trainingrun", "own-image", "--wait=true")
