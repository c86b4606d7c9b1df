"""What decisions read of pods and Jobs."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.core.pods import pods
from espalier.core.pods.blockers import Blocker


def pod(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "uid": "u", "labels": {"espalier.dev/role": "rollout"}},
        "spec": {"containers": [{"name": "rollout"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", **status},
    }


def container(role: str = "rollout", **changes: Any) -> dict[str, Any]:
    return {"name": role, "containerID": "c1", "started": True, **changes}


RUNNING = container(state={"running": {}})


def test_a_running_pod_has_started_and_a_restart_is_another_instance() -> None:
    first = pods.read_pod(pod(containerStatuses=[RUNNING]))
    again = pods.read_pod(pod(containerStatuses=[{**RUNNING, "containerID": "c2"}]))
    assert first.started
    assert not first.ready
    assert first.instance != again.instance


@pytest.mark.parametrize("sidecar_first", [True, False])
def test_a_sidecar_beside_the_container_changes_nothing_wherever_it_stands(
    *, sidecar_first: bool
) -> None:
    ended = {"exitCode": 137, "reason": "OOMKilled"}
    facts = {"imageID": f"x@sha256:{'a' * 64}", "state": BACK_OFF}
    status = container(**facts, lastState={"terminated": ended})
    alone = pod(containerStatuses=[status])
    alone["spec"]["containers"][0]["resources"] = {"limits": {"memory": "2Gi"}}
    sidecar = {"name": "istio-proxy", "containerID": "c9", "imageID": f"y@sha256:{'b' * 64}"}
    sidecar |= {"started": True, "state": {"running": {}}}
    beside = pod(containerStatuses=[sidecar, status])
    beside["spec"]["containers"] = [*alone["spec"]["containers"], {"name": "istio-proxy"}]
    if sidecar_first:
        beside["spec"]["containers"].reverse()
    assert pods.read_pod(beside) == pods.read_pod(alone)
    assert "its limit of 2Gi" in pods.read_pod(beside).killed


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


def killed(role: str, *, started: bool, limit: str = "", waiting: str = "") -> pods.Pod:
    state = {"waiting": {"reason": waiting}} if waiting else {"running": {}}
    over = container(
        role,
        started=started,
        state=state,
        lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
    )
    body = pod(containerStatuses=[over])
    body["metadata"]["labels"]["espalier.dev/role"] = role
    resources = {"limits": {"memory": limit}} if limit else {}
    body["spec"]["containers"] = [{"name": role, "resources": resources}]
    return pods.read_pod(body)


VLLM = """INFO starting
1 validation error for ModelConfig
  Value error, max_model_len (1024) is greater than the derived 512\x1b[0m
    For further information visit https://errors.example
"""
BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s restarting"}}


def ended(message: str, code: int = 1, **facts: Any) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message, **facts}}


@pytest.mark.parametrize("state", [BACK_OFF, {"running": {}}])
def test_a_container_that_dies_again_and_again_shows_its_last_lines_and_does_not_flap(
    state: dict[str, Any],
) -> None:
    read = pods.read_pod(
        pod(containerStatuses=[container(started=False, state=state, lastState=ended(VLLM))])
    )
    assert read.waiting_reason == "CrashLoopBackOff"
    assert read.waiting == (
        "CrashLoopBackOff: the container ended with exit code 1: 1 validation error for "
        "ModelConfig | Value error, max_model_len (1024) is greater than the derived 512 [0m | "
        "For further information visit https://errors.example"
    )


def test_one_that_left_no_message_says_so_and_a_long_one_is_bounded() -> None:
    def waiting(message: str) -> str:
        status = container(started=False, state=BACK_OFF, lastState=ended(message, 137))
        return pods.read_pod(pod(containerStatuses=[status])).waiting

    assert waiting("").endswith("ended with exit code 137 and left no message")
    assert len(waiting("\n".join(["x" * 4000] * 9))) < 1024


@pytest.mark.parametrize(("took", "told"), [("10:10", True), ("09:00", False), ("15:00", False)])
def test_a_container_that_its_startup_probe_ended_names_the_field(took: str, *, told: bool) -> None:
    times = {"startedAt": "2026-01-01T00:00:00Z", "finishedAt": f"2026-01-01T00:{took}Z"}
    body = pod(containerStatuses=[container(started=False, state=BACK_OFF)])
    body["status"]["containerStatuses"][0]["lastState"] = ended("", 0, **times)
    probe = {"periodSeconds": 1, "failureThreshold": 600}
    body["spec"]["containers"][0]["startupProbe"] = probe
    assert ("raise spec.rollout.startupSeconds" in pods.read_pod(body).waiting) == told


def test_an_error_of_the_scheduler_passes_by_itself() -> None:
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "SchedulerError"}
    read = pods.read_pod(pod(conditions=[scheduled], phase="Pending"))
    assert read.waiting_reason == "Starting"


def test_a_silent_pod_says_what_events_say_until_its_volumes_are_there() -> None:
    told = {"u": Blocker("FailedMount", 'configmap "t-nope" not found')}
    silent = pods.read_pod(pod(phase="Pending"))
    (read,) = pods.with_blockers([silent], told)
    assert read.waiting_reason == "FailedMount"
    assert read.waiting == 'FailedMount: configmap "t-nope" not found'
    mounted = {"type": "PodReadyToStartContainers", "status": "True"}
    for later in (
        pod(phase="Pending", conditions=[mounted]),
        pod(containerStatuses=[container(started=False, state={"running": {}})]),
    ):
        (read,) = pods.with_blockers([pods.read_pod(later)], told)
        assert read.waiting_reason == "Starting"


def test_a_job_whose_sidecar_runs_on_is_told_from_one_that_works() -> None:
    sidecar = {"name": "proxy", "state": {"running": {}}}
    body = pod(containerStatuses=[container(state=ended("done", 0)), sidecar])
    body["spec"]["restartPolicy"] = "Never"
    read = pods.read_pod(body)
    assert read.outlived == ("proxy",)
    assert "proxy runs on" in pods.keepers(read)
    assert "sidecar.istio.io/inject" in pods.keepers(read)
    working = pod(containerStatuses=[RUNNING, sidecar])
    working["spec"]["restartPolicy"] = "Never"
    assert not pods.read_pod(working).outlived


@pytest.mark.parametrize("waiting", ["", "CrashLoopBackOff"])
def test_a_container_that_was_killed_for_memory_says_its_limit_and_the_field(waiting: str) -> None:
    read = killed("trainer", started=False, limit="2Gi", waiting=waiting)
    assert read.waiting_reason == "OOMKilled"
    assert "its limit of 2Gi" in read.waiting
    assert "spec.trainer.template.resources" in read.waiting


def test_what_else_it_waits_for_comes_first_and_a_started_one_remembers() -> None:
    assert killed("trainer", started=False, waiting="ImagePullBackOff").waiting_reason == (
        "ImagePullBackOff"
    )
    again = killed("rollout", started=True)
    assert (again.waiting_reason, again.waiting) == ("", "")
    assert "the memory of its node" in again.killed
    assert "spec.rollout.template" in again.killed
    assert "spec.jobs.template" in killed("collector", started=True).killed
    assert "spec.runner.template" in killed("runner", started=True).killed


@pytest.mark.parametrize("state", ["state", "lastState"])
def test_a_process_that_gave_up_leaves_its_problem(state: str) -> None:
    message = '{"detail": "no GPU", "reason": "NoDevice", "remedy": "Ask for one"}'
    ended = container(**{state: {"terminated": {"exitCode": 64, "message": message}}})
    problem = pods.read_pod(pod(containerStatuses=[ended])).problem
    assert problem is not None
    assert problem.reason == "NoDevice"
    assert problem.text == "no GPU. Ask for one"


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


def importing(importer: dict[str, Any], place: dict[str, Any] | None = None) -> dict[str, Any]:
    """An importer's pod, whose folders are made."""
    inits = [
        {"name": "folders", "state": ended("", 0)},
        # Of a container that ends, not every kubelet says that it has started.
        {"name": "importer", "started": False, "state": importer},
    ]
    main = {"name": "place", "started": place == {"running": {}}}
    state = place or {"waiting": {"reason": "PodInitializing"}}
    body = pod(
        phase="Running" if place else "Pending",
        initContainerStatuses=inits,
        containerStatuses=[{**main, "state": state}],
    )
    body["metadata"]["labels"]["espalier.dev/role"] = "importer"
    body["spec"] = {"containers": [{"name": "place"}], "restartPolicy": "Never"}
    return body


def test_an_importers_pod_is_its_importer_until_that_is_through() -> None:
    brings = pods.read_pod(importing({"running": {}}))
    assert (brings.started, brings.placing, brings.waiting) == (True, False, "")
    places = pods.read_pod(importing(ended("", 0), {"running": {}}))
    assert (places.started, places.placing, places.preparing) == (True, True, False)
    done = pods.read_pod(importing(ended("", 0), ended('{"digest": "d"}', 0)))
    assert (done.message, done.preparing, done.placing) == ('{"digest": "d"}', False, False)


def test_an_importer_that_fails_leaves_its_problem_and_no_result() -> None:
    said = '{"reason": "HubBusy", "detail": "the hub answers 503"}'
    gave_up, tried = (pods.read_pod(importing(ended(said, code))) for code in (64, 1))
    assert gave_up.problem is not None
    assert gave_up.problem.reason == "HubBusy"
    assert tried.problem is None
    assert tried.told is not None
    for read in (gave_up, tried):
        assert read.preparing
        assert read.copying == ""


def test_folders_that_fail_before_a_job_are_its_pods_end() -> None:
    said = '{"reason": "VolumeReadOnly", "detail": "the volume cannot be written"}'
    body = importing({"waiting": {"reason": "PodInitializing"}})
    body["status"]["initContainerStatuses"][0]["state"] = ended(said)
    read = pods.read_pod(body)
    assert read.told is not None
    assert read.told.reason == "VolumeReadOnly"
    assert "exit code 1" in read.died
    assert read.copying == ""


def test_an_image_that_has_no_files_is_told_from_what_ours_do_before_it() -> None:
    body = importing({"waiting": {"reason": "PodInitializing"}})
    copy = {"name": "copy", "state": ended("cp: no such file")}
    body["status"]["initContainerStatuses"].insert(1, copy)
    assert pods.read_pod(body).copying.endswith("cp: no such file")


def test_an_importer_of_a_version_before_did_all_in_one_container() -> None:
    body = pod(containerStatuses=[container("importer", state=ended('{"digest": "d"}', 0))])
    body["metadata"]["labels"]["espalier.dev/role"] = "importer"
    body["spec"] = {"containers": [{"name": "importer"}], "restartPolicy": "Never"}
    read = pods.read_pod(body)
    assert (read.message, read.preparing) == ('{"digest": "d"}', False)
