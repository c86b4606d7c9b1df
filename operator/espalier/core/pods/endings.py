"""How containers ended: what they left behind, and what is to be done about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from espalier.api.exit_codes import USER_MISTAKE
from espalier.api.wire.problem import Problem
from espalier.core.manifests import labels
from espalier.core.pods import main_container

OOM_KILLED = "OOMKilled"
# Of a process that died without a message of its own, this much of its log is shown.
SHOWN_LINES = 3
SHOWN_CHARS = 300
# How long Kubernetes may take, beyond the grace period, to end a container that does not serve.
PROBED_SECONDS = 30

# Where the memory of a role's pods is set.
_TEMPLATES = {
    "trainer": "spec.trainer.template.resources",
    "rollout": "spec.rollout.template.resources",
    "importer": "spec.jobs.template.resources, and delete the Job",
    "collector": "spec.jobs.template.resources",
    "scrubber": "spec.jobs.template.resources",
    "runner": "spec.runner.template.resources of the TrainingRun",
}


def last_end(container: Mapping[str, Any]) -> dict[str, Any]:
    """How a container last ended, as its status says; empty if it never did."""
    for state in ("state", "lastState"):
        ended: dict[str, Any] | None = container.get(state, {}).get("terminated")
        if ended:
            return ended
    return {}


def killed(body: Mapping[str, Any], ended: Mapping[str, Any]) -> str:
    """That the main container was killed over its memory, with the limit and the field to raise."""
    if ended.get("reason") != OOM_KILLED:
        return ""
    resources = main_container.declared(body).get("resources", {})
    limit = resources.get("limits", {}).get("memory")
    over = f"its limit of {limit}" if limit else "the memory of its node, having no limit"
    place = _TEMPLATES.get(main_container.role(body), "its template")
    remedy = f"Raise requests and limits of memory in {place}"
    return f"{OOM_KILLED}: the container used more than {over}. {remedy}"


def died(body: Mapping[str, Any], ended: Mapping[str, Any]) -> str:
    """How the main container ended, with the last lines that it left; empty if it never did."""
    if not ended:
        return ""
    words = last_lines(ended.get("message", ""))
    said = f"the container ended with exit code {ended.get('exitCode', 0)}{_too_slow(body, ended)}"
    return f"{said}: {words}" if words else f"{said} and left no message"


def last_lines(text: str) -> str:
    """The last lines of a log in one, without what is not text: a log says what its writer likes.

    A Problem is told by its detail.
    """
    if left := told(text):
        text = left.text
    lines = [plain(line) for line in text.split("\n")]
    kept = [line[:SHOWN_CHARS] for line in lines if line][-SHOWN_LINES:]
    return " | ".join(kept)


def plain(line: str) -> str:
    """A line of somebody else's text as it may stand in a condition: printable, evenly spaced."""
    return " ".join("".join(c if c.isprintable() else " " for c in line).split())


def copy_failure(status: Mapping[str, Any]) -> str:
    """How the first init container ended that failed, of those that are not ours."""
    for container in status.get("initContainerStatuses", []):
        ended = last_end(container)
        if container.get("name") not in labels.BEFORE_MAIN and ended.get("exitCode", 0) != 0:
            return f"{ended.get('reason', 'Error')}: {ended.get('message', '')}".strip()
    return ""


def of_folders(status: Mapping[str, Any]) -> dict[str, Any]:
    """How the init container ended that makes what a pod mounts; empty if it never did."""
    found = status.get("initContainerStatuses", [])
    return next((last_end(c) for c in found if c.get("name") == labels.FOLDERS_CONTAINER), {})


def problem(ended: Mapping[str, Any]) -> Problem | None:
    """What a container left that gave up because only a person can go on."""
    if ended.get("exitCode") != USER_MISTAKE:
        return None
    text = ended.get("message", "")
    return told(text) or Problem(
        detail=last_lines(text) or "it left no message",
        reason="ProcessGaveUp",
        remedy="see the log of the pod",
    )


def told(text: str) -> Problem | None:
    """The Problem that a termination message is, if it is one."""
    try:
        return Problem.model_validate(json.loads(text))
    except (ValueError, ValidationError):
        return None


def _too_slow(body: Mapping[str, Any], ended: Mapping[str, Any]) -> str:
    """That its startup probe may have ended it, and the field that gives it longer."""
    probe = main_container.declared(body).get("startupProbe")
    started, finished = ended.get("startedAt"), ended.get("finishedAt")
    if not probe or not started or not finished:
        return ""
    allowed = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
    grace = body.get("spec", {}).get("terminationGracePeriodSeconds", 30)
    took = (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()
    if not allowed <= took <= allowed + grace + PROBED_SECONDS:
        return ""
    return (
        f" after {took:.0f} s, and its startup probe allows {allowed} s (if it was still loading, "
        f"raise spec.{main_container.role(body)}.startupSeconds)"
    )
