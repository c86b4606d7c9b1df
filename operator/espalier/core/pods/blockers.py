"""What keeps Kubernetes from making or starting a pod, where the pod itself does not say it.

A Deployment says in a condition that no pod can be made; of a StatefulSet or a Job, and of a volume
that cannot be mounted, only Events tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from espalier.core.pods.endings import plain

# Of all Warnings about a kind, those that say why something does not come to be.
TELLING: Mapping[str, frozenset[str]] = {
    "Pod": frozenset({"FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"}),
    "StatefulSet": frozenset({"FailedCreate"}),
    "Job": frozenset({"FailedCreate"}),
}
# A pod that was refused has another name at every try.
_REFUSED_POD = re.compile(r'pods "[^"]*" is forbidden')


@dataclass(frozen=True)
class Blocker:
    """Reason and message in Kubernetes' words."""

    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def uncreated(deployment: Mapping[str, Any] | None) -> Blocker | None:
    """That a Deployment's pods cannot be made."""
    for condition in (deployment or {}).get("status", {}).get("conditions", ()):
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            reason = condition.get("reason", "ReplicaFailure")
            return Blocker(reason, _steady(condition.get("message", "")))
    return None


def by_uid(kind: str, events: Iterable[Mapping[str, Any]]) -> dict[str, Blocker]:
    """The newest telling Warning about each object of a kind, by the object's uid."""
    newest: dict[str, tuple[str, Blocker]] = {}
    for event in events:
        reason, about = event.get("reason", ""), event["involvedObject"]
        if event.get("type") != "Warning" or about.get("kind") != kind:
            continue
        if reason not in TELLING.get(kind, ()):
            continue
        uid, at = about.get("uid", ""), _time(event)
        if uid not in newest or newest[uid][0] <= at:
            newest[uid] = (at, Blocker(reason, _steady(event.get("message", ""))))
    return {uid: blocker for uid, (_, blocker) in newest.items()}


def _steady(message: str) -> str:
    return _REFUSED_POD.sub("the pod is forbidden", plain(message))


def _time(event: Mapping[str, Any]) -> str:
    """When it happened last; RFC 3339 in UTC, which sorts as text up to the second."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return max((time[:19] for time in times if time), default="")
