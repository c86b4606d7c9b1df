"""What Kubernetes says about the pods and Jobs that do the work."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from espalier.api.wire import Problem
from espalier.core.manifests import labels
from espalier.core.manifests.pod import USER_ERROR


@dataclass(frozen=True)
class Pod:
    """The facts about a pod that decisions read.

    ``instance`` changes with every start of the main container; ``waiting`` is why it does not run,
    as Kubernetes words it; ``problem`` what the main container left behind when it gave up;
    ``message`` its termination message; ``copying`` how an init container failed; ``killed`` that
    the main container last ended for want of memory, and what to do about it.
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
    killed: str = ""


@dataclass(frozen=True)
class Job:
    """The facts about a Job that decisions read; ``generation`` is that of the run it drives."""

    uid: str
    generation: int
    complete: bool
    failed: bool
    terminating: bool
    completed: str = ""
    failure: str = ""

    @property
    def finished(self) -> bool:
        """Whether it will run no more pod."""
        return self.complete or self.failed


OOM_KILLED = "OOMKilled"
# What a container that was killed waits for until it serves again.
RESTARTING = ("Starting", "CrashLoopBackOff")
# Where the memory of a role's pods is set.
_TEMPLATES = {
    "trainer": "spec.trainer.template.resources",
    "rollout": "spec.rollout.template.resources",
    "importer": "spec.jobs.template.resources, and delete the Job",
    "collector": "spec.jobs.template.resources",
    "runner": "spec.runner.template.resources of the TrainingRun",
}

# Written on a runner's Job: the generation of the run that it was started for.
RUN_GENERATION = "espalier.dev/run-generation"


def read_pod(body: Mapping[str, Any]) -> Pod:
    """The facts of a Pod as the API server sends it."""
    metadata, status = body["metadata"], body.get("status", {})
    main = _main_container(body)
    running = main.get("state", {}).get("running") is not None
    ended = _terminated(main)
    killed = _killed(body, ended)
    reason, waiting = _waiting(status, main)
    if killed and reason in RESTARTING:
        reason, waiting = OOM_KILLED, killed
    phase = status.get("phase", "Pending")
    return Pod(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        role=metadata.get("labels", {}).get(labels.ROLE, ""),
        ip=status.get("podIP", ""),
        instance=f"{metadata.get('uid', '')}/{main.get('containerID', '')}",
        started=running and bool(main.get("started")),
        ready=_condition(status, "Ready").get("status") == "True",
        terminating=metadata.get("deletionTimestamp") is not None,
        finished=phase in ("Succeeded", "Failed"),
        waiting=waiting,
        waiting_reason=reason,
        problem=_problem(ended),
        message=ended.get("message", ""),
        copying=_init_failure(status),
        killed=killed,
    )


def read_job(body: Mapping[str, Any]) -> Job:
    """The facts of a Job as the API server sends it."""
    metadata, status = body["metadata"], body.get("status", {})
    failed = _condition(status, "Failed")
    return Job(
        uid=metadata.get("uid", ""),
        generation=int(metadata.get("annotations", {}).get(RUN_GENERATION, 0)),
        complete=_condition(status, "Complete").get("status") == "True",
        failed=failed.get("status") == "True",
        terminating=metadata.get("deletionTimestamp") is not None,
        completed=status.get("completionTime", ""),
        failure=f"{failed.get('reason', '')}: {failed.get('message', '')}",
    )


def live(pods: Iterable[Pod]) -> list[Pod]:
    """The pods that are not on their way out."""
    return [pod for pod in pods if not pod.terminating and not pod.finished]


def waiting(pods: Iterable[Pod]) -> str:
    """Why pods do not run, in Kubernetes' words; empty when all of them do."""
    return "; ".join(f"{pod.name}: {pod.waiting}" for pod in pods if pod.waiting)


def problem(pods: Iterable[Pod]) -> Problem | None:
    """What the first of these pods that gave up left behind."""
    return next((pod.problem for pod in pods if pod.problem is not None), None)


def explain(problem: Problem) -> str:
    """A problem as the message of a condition."""
    return f"{problem.detail}. {problem.remedy}" if problem.remedy else problem.detail


def _main_container(body: Mapping[str, Any]) -> dict[str, Any]:
    """The status of the pod's first container."""
    declared = body.get("spec", {}).get("containers", [])
    statuses = body.get("status", {}).get("containerStatuses", [])
    name = declared[0]["name"] if declared else None
    found: dict[str, Any] = next((s for s in statuses if s.get("name") == name), {})
    return found


def _waiting(status: Mapping[str, Any], main: Mapping[str, Any]) -> tuple[str, str]:
    """Reason and text of what the pod waits for."""
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        reason = scheduled.get("reason", "Unscheduled")
        return reason, f"{reason}: {scheduled.get('message', '')}"
    for container in [*status.get("initContainerStatuses", []), main]:
        state = container.get("state", {}).get("waiting")
        if state and state.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return state["reason"], f"{state['reason']}: {state.get('message', '')}"
    if not main.get("started"):
        return "Starting", "Starting"
    return "", ""


def _terminated(main: Mapping[str, Any]) -> dict[str, Any]:
    """How the main container last ended; empty if it never did."""
    for state in ("state", "lastState"):
        ended: dict[str, Any] | None = main.get(state, {}).get("terminated")
        if ended:
            return ended
    return {}


def _killed(body: Mapping[str, Any], ended: Mapping[str, Any]) -> str:
    """That the main container was killed over its memory, with the limit and the field to raise."""
    if ended.get("reason") != OOM_KILLED:
        return ""
    resources = body.get("spec", {}).get("containers", [{}])[0].get("resources", {})
    limit = resources.get("limits", {}).get("memory")
    over = f"its limit of {limit}" if limit else "the memory of its node, having no limit"
    role = body["metadata"].get("labels", {}).get(labels.ROLE, "")
    place = _TEMPLATES.get(role, "its template")
    remedy = f"Raise requests and limits of memory in {place}"
    return f"{OOM_KILLED}: the container used more than {over}. {remedy}"


def _init_failure(status: Mapping[str, Any]) -> str:
    """How the first init container that failed ended."""
    for container in status.get("initContainerStatuses", []):
        ended = _terminated(container)
        if ended.get("exitCode", 0) != 0:
            return f"{ended.get('reason', 'Error')}: {ended.get('message', '')}".strip()
    return ""


def _problem(ended: Mapping[str, Any]) -> Problem | None:
    if ended.get("exitCode") != USER_ERROR:
        return None
    try:
        return Problem.model_validate(json.loads(ended.get("message", "")))
    except (ValueError, ValidationError):
        return Problem(
            detail=ended.get("message") or "it left no message",
            reason="ProcessGaveUp",
            remedy="see the log of the pod",
        )


def _condition(status: Mapping[str, Any], type_: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        (c for c in status.get("conditions", []) if c.get("type") == type_), {}
    )
    return found
