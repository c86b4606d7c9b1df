"""What Kubernetes says about the pods and Jobs that do the work."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from espalier.api.wire.problem import Problem
from espalier.core.manifests import labels
from espalier.core.pods import endings, gpus, main_container
from espalier.core.pods.blockers import Blocker
from espalier.core.pods.endings import OOM_KILLED
from espalier.core.pods.queued import Place, Queue, Wait, job_place, pod_place


@dataclass(frozen=True)
class Pod:
    """The facts about a pod that decisions read.

    The main container is the one whose end counts: of a Job, until they are through, those of ours
    that go before it.

    ``instance`` changes with every start of the main container; ``waiting`` is why it does not run,
    as Kubernetes words it; ``problem`` what it, or the one that makes folders before it, left
    behind when it gave up; ``message`` its termination message; ``copying`` how a container failed
    that copies files out of a user's image; ``preparing``: it is not yet its first container, and
    what it says is no result; ``placing``: an import has brought all of its bytes; ``killed`` that
    the main container last ended for want of memory, and what to do about it; ``died`` how it last
    ended, ``ended`` when. ``mounted``: its volumes are there. ``outlived`` are the containers that
    run on although the main one, of a Job, is over for good. ``gpus`` are given to it. ``image`` is
    the digest of the main container's image, empty until the node has told it. ``place`` is where
    it waits for a quota. ``parts`` of the model's volume are mounted by themselves.
    """

    name: str
    uid: str
    role: str
    ip: str
    instance: str
    started: bool
    ready: bool
    terminating: bool
    finished: bool
    waiting: str = ""
    waiting_reason: str = ""
    problem: Problem | None = None
    message: str = ""
    copying: str = ""
    preparing: bool = False
    placing: bool = False
    killed: str = ""
    died: str = ""
    ended: str = ""
    mounted: bool = True
    outlived: tuple[str, ...] = ()
    gpus: int = 0
    image: str = ""
    place: Place | None = None
    parts: frozenset[str] = frozenset()

    @property
    def told(self) -> Problem | None:
        """The Problem that it left, whether or not it may pass when tried again."""
        return endings.told(self.message)


@dataclass(frozen=True)
class JobState:
    """The facts about a Job that decisions read.

    ``generation`` is that of the run it drives, and ``pod`` the part of the run its pods depend on.
    ``suspended``: it makes no pods until somebody lets it. ``place`` is where it waits for a quota.
    """

    uid: str
    generation: int
    complete: bool
    failed: bool
    terminating: bool
    completed: str = ""
    failure: str = ""
    suspended: bool = False
    pod: str = ""
    place: Place | None = None

    @property
    def finished(self) -> bool:
        """Whether it will run no more pod."""
        return self.complete or self.failed


CRASH_LOOP = "CrashLoopBackOff"
# What a container that ended waits for until it serves again.
RESTARTING = ("Starting", CRASH_LOOP)
# Reasons that say no more than that a pod is on its way; a scheduler's errors pass by themselves.
ON_ITS_WAY = (None, "PodInitializing", "ContainerCreating")
PASSING = ("SchedulerError",)
GATED = "SchedulingGated"

IMAGE_DIGEST = re.compile(r"sha256:[a-f0-9]{64}")

# Written on a runner's Job: the generation of the run that it was started for.
RUN_GENERATION = "espalier.dev/run-generation"
# And what its pods are made of: a pod template cannot be changed, only the Job be replaced.
RUN_POD = "espalier.dev/run-pod"


def read_pod(body: Mapping[str, Any]) -> Pod:
    """The facts of a Pod as the API server sends it."""
    metadata, status = body["metadata"], body.get("status", {})
    main = main_container.observed(body)
    running = main.get("state", {}).get("running") is not None
    ended = endings.last_end(main)
    killed, died = endings.killed(body, ended), endings.died(body, ended)
    outlived = _outlived(body, main)
    finished = status.get("phase", "Pending") in ("Succeeded", "Failed")
    reason, waiting = _waiting(body, main) if not finished and not outlived else ("", "")
    if killed and reason in RESTARTING:
        reason, waiting = OOM_KILLED, killed
    elif died and reason in RESTARTING:
        # The same between two starts as while it is started again.
        reason, waiting = CRASH_LOOP, f"{CRASH_LOOP}: {died}"
    return Pod(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        role=main_container.role(body),
        ip=status.get("podIP", ""),
        instance=f"{metadata.get('uid', '')}/{main.get('containerID', '')}",
        started=running and main_container.started(main),
        ready=_condition(status, "Ready").get("status") == "True",
        terminating=metadata.get("deletionTimestamp") is not None,
        finished=finished,
        waiting=waiting,
        waiting_reason=reason,
        problem=endings.problem(ended) or endings.problem(endings.of_folders(status)),
        message=ended.get("message", ""),
        copying=endings.copy_failure(status),
        preparing=main in main_container.before(status),
        placing=running and main.get("name") == labels.PLACE_CONTAINER,
        killed=killed,
        died=died,
        ended=ended.get("finishedAt") or "",
        mounted=_condition(status, "PodReadyToStartContainers").get("status") == "True"
        or bool(main.get("state", {}).keys() & {"running", "terminated"}),
        outlived=outlived,
        gpus=gpus.held(body),
        image=_image(main),
        place=pod_place(body),
        parts=_parts(body),
    )


def read_job(body: Mapping[str, Any]) -> JobState:
    """The facts of a Job as the API server sends it."""
    metadata, status = body["metadata"], body.get("status", {})
    failed = _condition(status, "Failed")
    return JobState(
        uid=metadata.get("uid", ""),
        generation=int(metadata.get("annotations", {}).get(RUN_GENERATION, 0)),
        complete=_condition(status, "Complete").get("status") == "True",
        failed=failed.get("status") == "True",
        terminating=metadata.get("deletionTimestamp") is not None,
        completed=status.get("completionTime", ""),
        failure=f"{failed.get('reason', '')}: {failed.get('message', '')}",
        suspended=bool(body.get("spec", {}).get("suspend")),
        pod=metadata.get("annotations", {}).get(RUN_POD, ""),
        place=job_place(body),
    )


def gpus_in_use(pods: Iterable[Pod]) -> int:
    """The GPUs of the pods that a node has set up and that have not ended."""
    return sum(pod.gpus for pod in pods if pod.mounted and not pod.finished)


def live(pods: Iterable[Pod]) -> list[Pod]:
    """The pods that are not on their way out."""
    return [pod for pod in pods if not pod.terminating and not pod.finished]


def with_blockers(pods: Iterable[Pod], blockers: Mapping[str, Blocker]) -> list[Pod]:
    """The pods, those of which no more is known than that they start with their blocker."""
    return [
        replace(pod, waiting_reason=found.reason, waiting=str(found))
        if (found := blockers.get(pod.uid)) is not None and is_silent(pod)
        else pod
        for pod in pods
    ]


def in_queue(pods: Iterable[Pod], queue: Queue) -> list[Pod]:
    """The pods, those that wait for a quota with what their queue says."""
    return [_queued(pod, queue.wait(pod.place)) if pod.place else pod for pod in pods]


def _queued(pod: Pod, wait: Wait) -> Pod:
    return replace(pod, waiting_reason=wait.reason, waiting=f"{wait.reason}: {wait.message}")


def is_silent(pod: Pod) -> bool:
    """Whether a pod does not start and does not say why."""
    return pod.waiting_reason == "Starting" and not pod.mounted


def outlived(pods: Iterable[Pod]) -> Pod | None:
    """A pod of a Job whose work is over, kept alive by other containers."""
    return next((pod for pod in pods if pod.outlived), None)


def keepers(pod: Pod) -> str:
    """Who keeps such a pod alive, and what to do about it."""
    names = ", ".join(pod.outlived)
    return (
        f"{pod.name}: {pod.died}; container {names} runs on, so its Job cannot end: keep sidecars "
        'out of the pod (for Istio by the annotation sidecar.istio.io/inject: "false" in its '
        "template), or have them injected as native ones"
    )


def last_words(pods: Iterable[Pod]) -> str:
    """How the last of these pods that died ended."""
    dead = [pod for pod in pods if pod.killed or pod.died or pod.told]
    if not dead:
        return ""
    last = max(dead, key=lambda pod: pod.ended)
    return last.killed or (last.told.detail if last.told else last.died)


def waiting(pods: Iterable[Pod]) -> str:
    """Why pods do not run, in Kubernetes' words; empty when all of them do."""
    return "; ".join(f"{pod.name}: {pod.waiting}" for pod in pods if pod.waiting)


def problem(pods: Iterable[Pod]) -> Problem | None:
    """What the first of these pods that gave up left behind."""
    return next((pod.problem for pod in pods if pod.problem is not None), None)


def url_host(ip: str) -> str:
    """An IP address as the host of a URL: one of IPv6 in brackets."""
    return f"[{ip}]" if ":" in ip else ip


def _parts(body: Mapping[str, Any]) -> frozenset[str]:
    # A sidecar that was injected may stand before the main container.
    containers = body.get("spec", {}).get("containers", [])
    mounts = [mount for container in containers for mount in container.get("volumeMounts", [])]
    return frozenset(mount["subPath"] for mount in mounts if "subPath" in mount)


def _image(main: Mapping[str, Any]) -> str:
    """The digest in an imageID such as ``docker.io/library/x@sha256:...``."""
    _, _, digest = main.get("imageID", "").rpartition("@")
    return digest if IMAGE_DIGEST.fullmatch(digest) else ""


def _waiting(body: Mapping[str, Any], main: Mapping[str, Any]) -> tuple[str, str]:
    """Reason and text of what the pod waits for."""
    status = body.get("status", {})
    scheduled = _condition(status, "PodScheduled")
    # The scheduler says so until it has seen that the last gate is gone.
    gated = body.get("spec", {}).get("schedulingGates")
    passing = PASSING if gated else (*PASSING, GATED)
    if scheduled.get("status") == "False" and scheduled.get("reason") not in passing:
        reason = scheduled.get("reason", "Unscheduled")
        return reason, f"{reason}: {scheduled.get('message', '')}"
    for container in [*status.get("initContainerStatuses", []), main]:
        state = container.get("state", {}).get("waiting")
        if state and state.get("reason") not in ON_ITS_WAY:
            # Of one that is started again and again the kubelet says no more than that.
            left = endings.last_lines(endings.last_end(container).get("message", ""))
            return state["reason"], f"{state['reason']}: {left or state.get('message', '')}"
    if not main_container.started(main):
        return "Starting", "Starting"
    return "", ""


def _outlived(body: Mapping[str, Any], main: Mapping[str, Any]) -> tuple[str, ...]:
    over = main.get("state", {}).get("terminated") is not None
    if not over or body.get("spec", {}).get("restartPolicy") != "Never":
        return ()
    others = body.get("status", {}).get("containerStatuses", [])
    return tuple(c["name"] for c in others if c.get("state", {}).get("running") is not None)


def _condition(status: Mapping[str, Any], type_: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        (c for c in status.get("conditions", []) if c.get("type") == type_), {}
    )
    return found
