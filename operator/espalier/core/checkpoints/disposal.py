"""What happens to a checkpoint's bytes when its Checkpoint is deleted.

Under ``deletionPolicy: Retain`` a Checkpoint is a plain record: nothing holds it, and the bytes
stay. Under ``Delete`` it carries a finalizer, the claim that holds its bytes, and the model as its
owner. It is then released once the bytes are gone, or after TIMEOUT with the bytes kept: nothing
that is missing, full or out of order can hold an object indefinitely.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from espalier.api.checkpoint import Checkpoint
from espalier.api.meta import API_VERSION, ObjectMeta
from espalier.api.trainablemodel import TrainableModel
from espalier.core.manifests.intent import owner_reference
from espalier.core.manifests.labels import MANAGED_BY
from espalier.core.pods import pods
from espalier.core.pods.pods import JobState, Pod

# Not a kind of the API: the work of one model that this module decides on.
DISPOSAL = "Disposal"
FINALIZER = "espalier.dev/bytes"
CLAIM_ANNOTATION = "espalier.dev/claim"
OWN_PREFIX = "espalier.dev/"
_OWNER: Final = "TrainableModel"
# Deletions are gathered for this long, so that one Job serves many of them.
GATHER = timedelta(seconds=30)
TIMEOUT = timedelta(minutes=15)
BATCH = 100

Body = dict[str, Any]
JobAction = Literal["Keep", "Create", "Delete"]


@dataclass(frozen=True)
class Disposal:
    """How a Checkpoint is marked; without an owner deleting the model leaves it alone."""

    claim: str = ""
    owner: ObjectMeta | None = None


RETAINED = Disposal()


def wanted(model: TrainableModel, *, forked: bool) -> Disposal:
    """How a model's Checkpoint is to be marked; one that a fork needs outlives the model."""
    if model.spec.deletion_policy == "Retain":
        return RETAINED
    claim = model.spec.storage.persistent_volume_claim.claim_name
    return Disposal(claim, None if forked else model.metadata)


def is_marked(body: Mapping[str, Any], disposal: Disposal) -> bool:
    """Whether a Checkpoint is marked like that."""
    metadata = body["metadata"]
    owners = [r["uid"] for r in metadata.get("ownerReferences", ()) if r["kind"] == _OWNER]
    return (
        (FINALIZER in metadata.get("finalizers", ())) == bool(disposal.claim)
        and metadata.get("annotations", {}).get(CLAIM_ANNOTATION, "") == disposal.claim
        and owners == ([disposal.owner.uid] if disposal.owner else [])
    )


def marked(body: Mapping[str, Any], disposal: Disposal) -> Body:
    """The operator's complete intent of a Checkpoint, new or live, with these marks.

    Labels and annotations of other owners are left out: applying this must not take them over.
    """
    metadata = body["metadata"]
    annotations = _own(metadata.get("annotations", {}))
    annotations.pop(CLAIM_ANNOTATION, None)
    intent: Body = {n: metadata[n] for n in ("name", "namespace", "uid") if n in metadata}
    intent["labels"] = _own(metadata.get("labels", {}))
    intent["annotations"] = annotations
    if disposal.claim:
        annotations[CLAIM_ANNOTATION] = disposal.claim
        intent["finalizers"] = [FINALIZER]
    if disposal.owner is not None:
        reference = owner_reference(_OWNER, disposal.owner, controller=False)
        intent["ownerReferences"] = [reference]
    return {
        "apiVersion": API_VERSION,
        "kind": "Checkpoint",
        "metadata": intent,
        "spec": body["spec"],
    }


def leaves(checkpoint: Checkpoint) -> bool:
    """Whether a Checkpoint is deleted and waits for its bytes to go."""
    gone = checkpoint.metadata.deletion_timestamp is not None
    return gone and FINALIZER in checkpoint.metadata.finalizers


def claim_of(checkpoint: Checkpoint) -> str:
    """The claim that holds the bytes of a Checkpoint under ``Delete``."""
    return checkpoint.metadata.annotations.get(CLAIM_ANNOTATION, "")


@dataclass(frozen=True)
class DisposalView:
    """The leaving checkpoints of a model, what still needs them, and the Job that removes bytes.

    ``lost`` says of claims whose bytes are out of reach for good why they are; ``handed`` are the
    names that the Job was given.
    """

    leaving: Sequence[Checkpoint]
    needs: Mapping[str, str]
    lost: Mapping[str, str] = field(default_factory=dict)
    job: JobState | None = None
    job_pods: Sequence[Pod] = ()
    handed: Collection[str] = ()


@dataclass(frozen=True)
class DisposalDecision:
    """``released`` by name, with why the bytes were kept, if they were."""

    released: Mapping[str, str]
    job: JobAction = "Keep"
    batch: Sequence[Checkpoint] = ()
    again_seconds: float | None = None


def decide(view: DisposalView, now: str) -> DisposalDecision:
    """Which Checkpoints to let go, and what to do about the Job; ``now`` is RFC 3339."""
    released = _released(view, now)
    left = [c for c in view.leaving if c.metadata.name not in released]
    if view.job is not None:
        working = not view.job.finished and any(c.metadata.name in view.handed for c in left)
        action: JobAction = "Keep" if working or view.job.terminating else "Delete"
        again = _until_timeout(left, now) if left else None
        return DisposalDecision(released, action, again_seconds=again)
    free = [c for c in left if c.metadata.name not in view.needs]
    ready = sorted(free, key=lambda c: (c.metadata.deletion_timestamp or "", c.metadata.name))
    if not ready:
        # Another model may need them by now: check again.
        again = min(GATHER.total_seconds(), _until_timeout(left, now)) if left else None
        return DisposalDecision(released, again_seconds=again)
    batch = [c for c in ready if claim_of(c) == claim_of(ready[0])][:BATCH]
    wait = GATHER - _since(ready[0], now)
    if len(batch) < BATCH and wait > timedelta():
        return DisposalDecision(released, again_seconds=wait.total_seconds())
    return DisposalDecision(released, "Create", batch, _until_timeout(left, now))


def _released(view: DisposalView, now: str) -> dict[str, str]:
    released: dict[str, str] = {}
    answer = _answer(view)
    for checkpoint in view.leaving:
        name = checkpoint.metadata.name
        if lost := view.lost.get(claim_of(checkpoint)):
            released[name] = lost
        elif answer is not None and name in view.handed:
            released[name] = answer(checkpoint.spec.digest)
        elif _since(checkpoint, now) >= TIMEOUT:
            minutes = int(TIMEOUT.total_seconds() // 60)
            why = view.needs.get(name) or pods.waiting(view.job_pods) or "the Job has not ended"
            released[name] = f"not removed within {minutes} minutes: {why}"
    return released


def _answer(view: DisposalView) -> Callable[[str], str] | None:
    """Why the bytes of a digest were kept (empty: they were not), once the Job has ended."""
    alone = pods.outlived(view.job_pods)
    if view.job is None or not (view.job.finished or alone is not None):
        return None
    reports = (_kept(pod) for pod in view.job_pods)
    kept = next((report for report in reports if report is not None), None)
    if view.job.failed or (alone is not None and kept is None):
        found = pods.problem(view.job_pods)
        why = found.text if found else pods.last_words(view.job_pods) or view.job.failure
        return lambda _: f"the collector failed: {why}"
    return lambda digest: (kept or {}).get(digest, "")


def _kept(pod: Pod) -> dict[str, str] | None:
    """What the collector's termination message says; None for another."""
    try:
        kept: dict[str, str] = json.loads(pod.message)["kept"]
    except (ValueError, KeyError, TypeError):
        return None
    return kept


def _until_timeout(left: Sequence[Checkpoint], now: str) -> float:
    """Seconds until the first of them is let go in any case."""
    waits = [(TIMEOUT - _since(c, now)).total_seconds() for c in left]
    return max(0.0, min(waits, default=0.0))


def _since(checkpoint: Checkpoint, now: str) -> timedelta:
    deleted = checkpoint.metadata.deletion_timestamp or now
    return datetime.fromisoformat(now) - datetime.fromisoformat(deleted)


def _own(entries: Mapping[str, str]) -> dict[str, str]:
    return {n: v for n, v in entries.items() if n.startswith(OWN_PREFIX) or n == MANAGED_BY}
