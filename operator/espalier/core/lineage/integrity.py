"""Whether a Checkpoint object is one that a commit could have made.

Who has the right may write a Checkpoint by hand. One that contradicts itself stays out of the tree,
so that it neither becomes current nor stands between those that are true. What no object can show,
whether the bytes are those of the digest, is verified by whoever loads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from espalier.api.checkpoint import Checkpoint
from espalier.api.meta import METRIC_NAME_CHARS, METRIC_VALUE_CHARS, METRICS_MOST
from espalier.core.manifests.labels import BRANCH, METRICS_ANNOTATION, MODEL
from espalier.core.names import checkpoint_name
from espalier.core.volume import checkpoint_uri


@dataclass(frozen=True)
class Fault:
    """Why a Checkpoint is invalid: the reason for its condition, the field and the remedy."""

    reason: str
    message: str


INVALID_URI = "InvalidURI"
INVALID_NAME = "InvalidName"
INVALID_LABEL = "InvalidLabel"
INVALID_PARENT = "InvalidParent"
INVALID_METRICS = "InvalidMetrics"
REASONS = frozenset({INVALID_URI, INVALID_NAME, INVALID_LABEL, INVALID_PARENT, INVALID_METRICS})
REMEDY = "Delete it: a spec is immutable"


def fault(checkpoint: Checkpoint, siblings: Mapping[str, Checkpoint]) -> Fault | None:
    """The fault of a Checkpoint, or None; ``siblings`` are its model's Checkpoints by name."""
    return _contradiction(checkpoint) or _wrong_parent(checkpoint, siblings)


def _contradiction(checkpoint: Checkpoint) -> Fault | None:
    spec, metadata = checkpoint.spec, checkpoint.metadata
    if spec.uri != (uri := checkpoint_uri(spec.digest)):
        return Fault(
            INVALID_URI,
            f"spec.uri: {spec.uri} is not where its digest lies on the model's volume, {uri}. "
            f"{REMEDY}",
        )
    model = spec.model_ref.name
    if metadata.name != (name := checkpoint_name(model, spec.branch, spec.step)):
        return Fault(
            INVALID_NAME,
            f"metadata.name: step {spec.step} of {model} on branch {spec.branch} is named {name}. "
            f"{REMEDY}",
        )
    for label, value in ((MODEL, model), (BRANCH, spec.branch)):
        if metadata.labels.get(label, value) != value:
            return Fault(
                INVALID_LABEL,
                f"metadata.labels: {label} is {metadata.labels[label]}, but the spec says {value}. "
                f"Set the label to {value}, or delete the Checkpoint",
            )
    if recorded_metrics(metadata.annotations) is None:
        return Fault(
            INVALID_METRICS,
            f"metadata.annotations: {METRICS_ANNOTATION} is not a JSON object of at most "
            f"{METRICS_MOST} decimal strings by name. Set it right, or delete the Checkpoint",
        )
    return None


def recorded_metrics(annotations: Mapping[str, str]) -> dict[str, str] | None:
    """The metrics in a Checkpoint's annotation; None if they are invalid."""
    try:
        found: dict[str, str] = json.loads(annotations.get(METRICS_ANNOTATION, "{}"))
        # Compare whole lists: this runs for every Checkpoint at every start.
        decimals = [*map(float, found.values())]
        fits = (
            len(decimals) <= METRICS_MOST
            and max(map(len, found), default=0) <= METRIC_NAME_CHARS
            and max(map(len, found.values()), default=0) <= METRIC_VALUE_CHARS
        )
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return found if fits else None


def _wrong_parent(checkpoint: Checkpoint, siblings: Mapping[str, Checkpoint]) -> Fault | None:
    """A parent is one step before its child, so no chain of parents comes back to its start."""
    ref, step = checkpoint.spec.parent_ref, checkpoint.spec.step
    parent = siblings.get(ref.name) if ref is not None else None
    if parent is None or parent.spec.step == step - 1:
        return None
    return Fault(
        INVALID_PARENT,
        f"spec.parentRef: {parent.metadata.name} is at step {parent.spec.step}, which step {step} "
        f"cannot have started from. {REMEDY}",
    )
