"""Kueue: what is launched with a queueName waits in that LocalQueue until its quota is free.

A Job is made suspended, and pods of a StatefulSet or Deployment are made with Kueue's gate: both
wait as well where no Kueue manages them, so that a quota is never passed by.
https://kueue.sigs.k8s.io/docs/tasks/run/
"""

from __future__ import annotations

import re
from typing import Literal

from espalier.api.podtemplate import QUEUE_LABEL, PodTemplate
from espalier.core.manifests.intent import Manifest

GATE = "kueue.x-k8s.io/admission"
_MANAGED = "kueue.x-k8s.io/managed"
_INTEGRATION = "kueue.x-k8s.io/pod-suspending-parent"
# Of a Deployment: without an end, for nobody knows how long a pod is queued.
NO_DEADLINE = 2**31 - 1

_REFUSED = re.compile(r'admission webhook "v(deployment|statefulset)\.kb\.io" denied the request')

AfterRefusal = Literal["Replace", "Wait", "Raise"]


def queue_of(template: PodTemplate | None) -> str:
    """The name of the LocalQueue; empty without one."""
    return (template.queue_name or "") if template is not None else ""


def queue_labels(template: PodTemplate | None) -> dict[str, str]:
    """The label by which Kueue manages a Job or a Deployment, and the pods of one."""
    queue = queue_of(template)
    return {QUEUE_LABEL: queue} if queue else {}


def suspended(template: PodTemplate | None) -> Manifest:
    """The part of a Job's spec that has it wait for Kueue."""
    return {"suspend": True} if queue_of(template) else {}


def gated(template: PodTemplate | None) -> Manifest:
    """The part of a pod's spec that has it wait for Kueue."""
    return {"schedulingGates": [{"name": GATE}]} if queue_of(template) else {}


def pods_alone(metadata: Manifest, template: PodTemplate | None) -> Manifest:
    """The metadata of pods that Kueue manages one by one, and not with their StatefulSet.

    With that it would let nobody change what a pod requests, hold up a start until an earlier end
    is forgotten, and take no name of more than 45 characters.
    """
    if not queue_of(template):
        return metadata
    labels = metadata["labels"] | queue_labels(template) | {_MANAGED: "true"}
    annotations = metadata.get("annotations", {}) | {_INTEGRATION: "pod"}
    return {**metadata, "labels": labels, "annotations": annotations}


def after_refusal(message: str) -> AfterRefusal:
    """What to do about a Deployment or StatefulSet whose change Kueue's webhook refuses.

    It refuses another queue while pods hold the quota of the old one, and of a StatefulSet that it
    has put into a namespace's default queue other requests: then the workload is made anew. It
    refuses to have one started again that still gives back its quota: that takes seconds.
    """
    if not _REFUSED.search(message):
        return "Raise"
    if "is immutable" in message:
        return "Replace"
    return "Wait" if "spec.replicas: Forbidden" in message else "Raise"
