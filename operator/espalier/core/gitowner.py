"""Finds out whether Git owns an object, by the marks that GitOps controllers leave on it.

As they do, ``espalier dev`` applies the runs of its directory again, and leaves a mark.
Argo CD: annotation ``argocd.argoproj.io/tracking-id`` (``app:group/kind:namespace/name``) or its
label; Flux: labels of its kustomizations and Helm releases. Without either mark, whoever manages
fields of the spec tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The manager of the fields that the gateway writes in a user's name.
GATEWAY_MANAGER = "espalier-gateway"
# Written by the gateway on what it edits: the user who asked for it.
REQUESTED_BY = "espalier.dev/requested-by"
# Which revision of Git an object was applied from: Argo CD writes no mark of its own for it.
GIT_REVISION = "espalier.dev/git-revision"
GIT_REVISION_CHARACTERS = 128
# Written on runs by ``espalier dev``: the directory of their manifests.
APPLIED_FROM = "espalier.dev/applied-from"
ARGO_TRACKING = "argocd.argoproj.io/tracking-id"
ARGO_LABEL = "argocd.argoproj.io/instance"
FLUX_LABELS = ("kustomize.toolkit.fluxcd.io/name", "helm.toolkit.fluxcd.io/name")
_MANAGERS = {
    "argocd-controller": "Argo CD",
    "argocd-application-controller": "Argo CD",
    "kustomize-controller": "Flux",
    "helm-controller": "Flux",
}


@dataclass(frozen=True)
class GitOwner:
    """The controller that applies Git, and its application or release; empty when unknown."""

    controller: str
    source: str = ""

    def __str__(self) -> str:
        return f"{self.controller} ({self.source})" if self.source else self.controller


def git_owner(metadata: Mapping[str, Any]) -> GitOwner | None:
    """The controller that applies the object from Git; None if there is none.

    Args:
        metadata: of the live object, ``managedFields`` included.
    """
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    if APPLIED_FROM in annotations:
        return GitOwner("espalier dev", annotations[APPLIED_FROM])
    tracking = annotations.get(ARGO_TRACKING, "")
    application, _, tracked = tracking.partition(":")
    # A copied annotation names the object that it was copied from.
    if tracked.endswith(f"/{metadata['name']}"):
        return GitOwner("Argo CD", application)
    if ARGO_LABEL in labels:
        return GitOwner("Argo CD", labels[ARGO_LABEL])
    for label in FLUX_LABELS:
        if label in labels:
            return GitOwner("Flux", labels[label])
    for entry in metadata.get("managedFields") or ():
        manager = entry.get("manager", "")
        if manager in _MANAGERS and "f:spec" in (entry.get("fieldsV1") or {}):
            return GitOwner(_MANAGERS[manager])
    return None
