"""The taskset that a step was sampled from, as its Checkpoint carries it."""

from __future__ import annotations

from pydantic import ValidationError

from espalier.api.checkpoint import Checkpoint
from espalier.api.run.status import TasksetStatus
from espalier.api.wire.commits import Commit
from espalier.api.wire.step import TasksetUsed
from espalier.core.manifests.labels import TASKSET_ANNOTATION


def annotated(commit: Commit) -> dict[str, str]:
    """What is written with a Checkpoint; nothing where its client did not say."""
    used = commit.taskset
    return {TASKSET_ANNOTATION: used.model_dump_json()} if used is not None else {}


def recorded(checkpoint: Checkpoint) -> TasksetStatus | None:
    """The taskset of a Checkpoint; None where that is not on it."""
    text = checkpoint.metadata.annotations.get(TASKSET_ANNOTATION)
    if text is None:
        return None
    try:
        return TasksetStatus.model_validate(TasksetUsed.model_validate_json(text).model_dump())
    except ValidationError:
        return None
