"""What waits in a queue of Kueue, and what Kueue says of it. Pure.

A pod waits while it bears Kueue's gate, a Job while it is suspended. Why is on Kueue's Workload: of
a Job or of a pod by itself its owner is known, and the pods of a group bear its name.
https://kueue.sigs.k8s.io/docs/concepts/workload/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from espalier.api.podtemplate import QUEUE_LABEL
from espalier.core.conditions import QUEUE_UNAVAILABLE, QUEUED
from espalier.core.manifests.queue import GATE
from espalier.core.pods.endings import plain

_GROUP_LABEL = "kueue.x-k8s.io/pod-group-name"
# Kueue's reason for what no quota would help: the queue is not there, or is stopped.
_INADMISSIBLE = "Inadmissible"
_UNSEEN = (
    "Kueue has made no Workload for it. If that lasts: does Kueue run, does it manage this "
    "namespace, and are its integrations batch/job, pod and deployment enabled"
)
_NO_KUEUE = (
    "the cluster does not know Kueue's kind Workload (kueue.x-k8s.io/v1beta2): install Kueue 0.17 "
    "or newer, or remove queueName"
)


@dataclass(frozen=True)
class Place:
    """Where something waits: its queue, and the keys by which its Workload is found."""

    queue: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Wait:
    """Why something waits, as a condition says it."""

    reason: str
    message: str


@dataclass(frozen=True)
class Queue:
    """The Workloads of a namespace that are not admitted, by their keys; ``known``: Kueue is."""

    said: Mapping[str, Wait] = field(default_factory=dict)
    known: bool = True

    def says(self, place: Place | None) -> Wait | None:
        """What Kueue says of what waits at a place, if it waits."""
        return self.wait(place) if place is not None else None

    def wait(self, place: Place) -> Wait:
        """What Kueue says of what waits at a place."""
        where = f"in LocalQueue {place.queue}"
        if not self.known:
            return Wait(QUEUE_UNAVAILABLE, f"{where}: {_NO_KUEUE}")
        found = next((self.said[key] for key in place.keys if key in self.said), None)
        if found is None:
            return Wait(QUEUED, f"{where}: {_UNSEEN}")
        return Wait(found.reason, f"{where}: {found.message}")


def pod_place(body: Mapping[str, Any]) -> Place | None:
    """Where a Pod waits; None if it does not."""
    gates = [gate.get("name") for gate in body.get("spec", {}).get("schedulingGates") or ()]
    if GATE not in gates:
        return None
    labels = body["metadata"].get("labels", {})
    keys = (body["metadata"].get("uid", ""), labels.get(_GROUP_LABEL, ""))
    return Place(labels.get(QUEUE_LABEL, ""), tuple(filter(None, keys)))


def job_place(body: Mapping[str, Any]) -> Place | None:
    """Where a Job waits; None if it does not, or not for a queue."""
    queue = body["metadata"].get("labels", {}).get(QUEUE_LABEL, "")
    if not queue or not body.get("spec", {}).get("suspend"):
        return None
    return Place(queue, (body["metadata"].get("uid", ""),))


def read(workloads: Iterable[Mapping[str, Any]]) -> dict[str, Wait]:
    """What Kueue says of the Workloads that are not admitted, by uids of owners and by name."""
    found: dict[str, Wait] = {}
    for body in workloads:
        wait = _wait(body.get("status", {}).get("conditions", ()))
        if wait is None:
            continue
        metadata = body["metadata"]
        owners = (owner.get("uid", "") for owner in metadata.get("ownerReferences") or ())
        found |= dict.fromkeys((*owners, metadata["name"]), wait)
    return found


def _wait(conditions: Sequence[Mapping[str, Any]]) -> Wait | None:
    """Why a Workload is not admitted; None if it is, or is over."""
    by_type = {condition.get("type"): condition for condition in conditions}

    def holds(type_: str) -> bool:
        return bool(by_type.get(type_, {}).get("status") == "True")

    if holds("Finished") or (holds("Admitted") and not holds("Evicted")):
        return None
    quota = by_type.get("QuotaReserved", {})
    if holds("QuotaReserved"):
        told = by_type.get("Admitted", {}).get("message") or "its admission checks are under way"
        return Wait(QUEUED, plain(f"the quota is reserved; {told}"))
    if quota.get("reason") == _INADMISSIBLE:
        told = quota.get("message", "")
        return Wait(QUEUE_UNAVAILABLE, plain(f"{told}. Create or mend it, or edit queueName"))
    evicted = by_type.get("Evicted", {}).get("message", "") if holds("Evicted") else ""
    told = "; ".join(dict.fromkeys(filter(None, (quota.get("message", ""), evicted))))
    return Wait(QUEUED, plain(told or "Kueue has not looked at it yet"))
