"""The GPUs that a pod holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.core.run_views import RUNNER
from tests.kube.children import SETTINGS, model_of, run_of

from espalier.core.manifests.runner import runner_job
from espalier.core.pods import gpus, pods


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        ({}, 0),
        ({"cpu": "4", "memory": "8Gi"}, 0),
        ({"nvidia.com/gpu": "2"}, 2),
        ({"amd.com/gpu": 1}, 1),
        ({"nvidia.com/gpu.shared": "1"}, 1),
        ({"gpu.intel.com/i915": "1", "gpu.intel.com/memory.max": "8"}, 1),
        ({"nvidia.com/mig-1g.10gb": "3"}, 3),
        ({"example.com/gpu-memory": "40", "gpu": "9"}, 0),
    ],
)
def test_gpus_are_told_by_the_names_of_their_resources(
    limits: dict[str, str | int], count: int
) -> None:
    one = {"resources": {"limits": limits}}
    assert gpus.held({"spec": {"containers": [one]}}) == count
    assert gpus.held({"spec": {"containers": [one, {"name": "proxy"}, one]}}) == 2 * count


def test_the_image_that_plays_a_taskset_holds_its_gpus_as_well() -> None:
    image = {"image": "registry.example/game:1", "tasks": "game:tasks", "rollout": "game:rollout"}
    limits = {"limits": {"nvidia.com/gpu": "1"}}
    run = run_of(taskset={"seed": 1, "python": {**image, "resources": limits}})
    job = runner_job(run, model_of(), SETTINGS)
    assert gpus.held(job["spec"]["template"]) == 1
    once = {"name": "copy", "resources": limits}
    assert gpus.held({"spec": {"containers": [], "initContainers": [once]}}) == 0


def test_gpus_are_in_use_from_the_node_to_the_end_of_the_pod() -> None:
    pod = replace(RUNNER, gpus=4)
    assert pods.gpus_in_use([pod]) == 4
    assert pods.gpus_in_use([replace(pod, ready=False, started=False)]) == 4
    assert pods.gpus_in_use([replace(pod, terminating=True)]) == 4
    assert pods.gpus_in_use([replace(pod, mounted=False)]) == 0
    assert pods.gpus_in_use([replace(pod, finished=True)]) == 0
