"""What decisions read of pods and Jobs."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.core import pods


def pod(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "uid": "u", "labels": {"espalier.dev/role": "rollout"}},
        "spec": {"containers": [{"name": "rollout"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", **status},
    }


def container(**changes: Any) -> dict[str, Any]:
    return {"name": "rollout", "containerID": "c1", "started": True, **changes}


RUNNING = container(state={"running": {}})


def test_a_running_pod_has_started_and_a_restart_is_another_instance() -> None:
    first = pods.read_pod(pod(containerStatuses=[RUNNING]))
    again = pods.read_pod(pod(containerStatuses=[{**RUNNING, "containerID": "c2"}]))
    assert first.started
    assert not first.ready
    assert first.instance != again.instance


@pytest.mark.parametrize(
    ("status", "reason", "text"),
    [
        (
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/1 nodes: insufficient nvidia.com/gpu",
                    }
                ]
            },
            "Unschedulable",
            "insufficient nvidia.com/gpu",
        ),
        (
            {
                "containerStatuses": [
                    container(
                        started=False,
                        state={"waiting": {"reason": "ImagePullBackOff", "message": "no such"}},
                    )
                ]
            },
            "ImagePullBackOff",
            "no such",
        ),
        (
            {
                "initContainerStatuses": [
                    {"name": "copy", "state": {"waiting": {"reason": "ErrImagePull"}}}
                ],
                "containerStatuses": [
                    container(started=False, state={"waiting": {"reason": "PodInitializing"}})
                ],
            },
            "ErrImagePull",
            "ErrImagePull",
        ),
        ({"containerStatuses": [container(started=False, state={"running": {}})]}, "Starting", ""),
        ({"containerStatuses": [RUNNING]}, "", ""),
    ],
)
def test_what_a_pod_waits_for_is_in_kubernetes_words(
    status: dict[str, Any], reason: str, text: str
) -> None:
    read = pods.read_pod(pod(**status))
    assert read.waiting_reason == reason
    assert text in read.waiting


@pytest.mark.parametrize("state", ["state", "lastState"])
def test_a_process_that_gave_up_leaves_its_problem(state: str) -> None:
    message = '{"detail": "no GPU", "reason": "NoDevice", "remedy": "Ask for one"}'
    ended = container(**{state: {"terminated": {"exitCode": 64, "message": message}}})
    problem = pods.read_pod(pod(containerStatuses=[ended])).problem
    assert problem is not None
    assert problem.reason == "NoDevice"
    assert pods.explain(problem) == "no GPU. Ask for one"


def test_a_crash_is_not_a_problem_and_a_garbled_message_still_is() -> None:
    crashed = container(lastState={"terminated": {"exitCode": 137, "message": ""}})
    assert pods.read_pod(pod(containerStatuses=[crashed])).problem is None
    garbled = container(state={"terminated": {"exitCode": 64, "message": "Traceback"}})
    problem = pods.read_pod(pod(containerStatuses=[garbled])).problem
    assert problem is not None
    assert (problem.reason, problem.detail) == ("ProcessGaveUp", "Traceback")


def test_a_pod_on_its_way_out_is_not_live() -> None:
    going = pod(containerStatuses=[RUNNING])
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    ended = pod(phase="Succeeded")
    assert pods.live([pods.read_pod(going), pods.read_pod(ended)]) == []
