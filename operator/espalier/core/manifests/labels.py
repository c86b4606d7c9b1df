"""Labels that the children are found by."""

from __future__ import annotations

from typing import Literal

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "espalier"
MODEL = "espalier.dev/model"
RUN = "espalier.dev/run"
ROLE = "espalier.dev/role"
BRANCH = "espalier.dev/branch"
TEMPLATE_HASH = "espalier.dev/template-hash"

Role = Literal["trainer", "rollout", "runner", "importer", "collector", "scrubber"]

# The init container that makes what a pod mounts of a model's volume.
FOLDERS_CONTAINER = "folders"
# The init container that opens strangers' bytes, and the main one that puts them in place.
IMPORTER_CONTAINER, PLACE_CONTAINER = "importer", "place"
# Those of ours that run to their end before the main container starts.
BEFORE_MAIN = (FOLDERS_CONTAINER, IMPORTER_CONTAINER)

MANAGED = {MANAGED_BY: MANAGER}


def main_container(role: str) -> str:
    """The name of the main container of a role's pods."""
    return PLACE_CONTAINER if role == "importer" else role


def child_labels(role: Role, model: str, run: str = "") -> dict[str, str]:
    """Labels of a child of a model, or of a run of that model."""
    labels = {**MANAGED, MODEL: model, ROLE: role}
    if run:
        labels[RUN] = run
    return labels


# What a Checkpoint's status is derived from: written with it, so that no crash parts the two.
METRICS_ANNOTATION = "espalier.dev/metrics"
# What its step says of other Checkpoints: theirs are derived from it.
MEASURED_ANNOTATION = "espalier.dev/measured"
RUN_STEP_ANNOTATION = "espalier.dev/run-step"
# The tokens of its run up to it (core/checkpoints/run_tokens.py).
RUN_TOKENS_ANNOTATION = "espalier.dev/run-tokens"
# The tasks of its step (core/checkpoints/taskset_used.py).
TASKSET_ANNOTATION = "espalier.dev/taskset"
RUN_UID_ANNOTATION = "espalier.dev/run-uid"
