"""What a Job that has read bytes through leaves behind, and what it says of one checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from espalier.api.checkpoint import Checkpoint
from espalier.api.wire.problem import Problem
from espalier.core.manifests.scrubber import Handed
from espalier.core.names import ADAPTER_DIGEST_CHARS
from espalier.core.pods import pods
from espalier.core.pods.pods import JobState, Pod
from espalier.core.volume import DIGEST_PREFIX

ALTERED, MISSING = "BytesAltered", "BytesMissing"
REASONS = frozenset({ALTERED, MISSING})
_REMEDY = (
    "Restore its directory from a copy of the volume, and annotate the model with "
    "espalier.dev/scrub to have it read again; or move heads off it and delete it"
)
# What a Job may report, for its message has room for no more; the rest is the next Job's.
REPORTED_MOST = 12


class Fault(BaseModel):
    """Why bytes are not those of their digest."""

    model_config = ConfigDict(frozen=True)

    reason: Literal["BytesAltered", "BytesMissing"]
    detail: str

    @property
    def problem(self) -> Problem:
        """As a Checkpoint's condition says it."""
        return Problem(reason=self.reason, detail=f"scrub: {self.detail}", remedy=_REMEDY)


class Report(BaseModel):
    """What a Job found: how many of its checkpoints it has read, and the faults by digest."""

    model_config = ConfigDict(frozen=True)

    checked: int
    read_bytes: int
    base: str = ""
    rotten: dict[str, Fault] = Field(default_factory=dict)


def key_of(digest: str) -> str:
    """The first digits of a digest, which name it in a report."""
    return digest.removeprefix(DIGEST_PREFIX)[:ADAPTER_DIGEST_CHARS]


def report(job: JobState | None, job_pods: Sequence[Pod]) -> Report | None:
    """What the Job found, once it has ended well."""
    if job is None or not (job.complete or pods.outlived(job_pods) is not None):
        return None
    reports = (_report(pod.message) for pod in job_pods)
    return next((found for found in reports if found is not None), None)


def evidence(found: Report | None, handed: Handed, checkpoint: Checkpoint) -> Fault | bool:
    """What a Job found of a checkpoint: its fault; True, its bytes are right; False, nothing."""
    if found is None or checkpoint.metadata.name not in handed.names[: found.checked]:
        return False
    return found.rotten.get(key_of(checkpoint.spec.digest), True)


def _report(text: str) -> Report | None:
    try:
        return Report.model_validate_json(text)
    except ValidationError:
        return None
