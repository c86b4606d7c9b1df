"""What kstatus makes of an object: Flux, Argo CD's health checks and kpt wait for its verdict.

A port of ``status.Compute`` for custom resources (kubernetes-sigs/cli-utils, pkg/kstatus/status:
generic.go, then status.go's check of Ready). The first match of this order decides: deletion,
observedGeneration, Reconciling or Stalled in the order that they are listed, Ready.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TERMINATING, IN_PROGRESS, FAILED, CURRENT = "Terminating", "InProgress", "Failed", "Current"


def compute(body: Mapping[str, Any]) -> str:
    """Terminating, InProgress, Failed or Current."""
    metadata, status = body["metadata"], body.get("status", {})
    if metadata.get("deletionTimestamp"):
        return TERMINATING
    observed, generation = status.get("observedGeneration"), metadata.get("generation")
    if observed is not None and generation is not None and observed != generation:
        return IN_PROGRESS
    conditions = status.get("conditions", [])
    for condition in conditions:
        if condition["status"] == "True" and condition["type"] in ("Reconciling", "Stalled"):
            return IN_PROGRESS if condition["type"] == "Reconciling" else FAILED
    for condition in conditions:
        if condition["type"] == "Ready":
            return CURRENT if condition["status"] == "True" else IN_PROGRESS
    # Nothing to go by: what no controller has seen yet counts as done.
    return CURRENT
