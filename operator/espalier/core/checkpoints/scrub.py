"""When the bytes of a model are read through and compared with their digests, and what was found.

A pass goes over the base and the Checkpoints that there were when it began, in the order of their
names, one Job for each batch. The model's status keeps how far it is, so a pass goes on after any
crash. What a batch found is on record in the Checkpoints' conditions, and the batch in the status,
before its Job is deleted; only a later scrub that has read the bytes again takes a finding back: a
rollout that has loaded them before they rotted says nothing of them.

A pass that is overdue, as all are after a longer outage or under the first version that scrubs,
begins at a moment of the interval that follows from the model's uid, so that not all read at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from espalier.api.checkpoint import Checkpoint
from espalier.api.model.status import Scrub
from espalier.api.trainablemodel import TrainableModel
from espalier.core import conditions
from espalier.core.checkpoints.scrub_report import (
    REASONS,
    Fault,
    Report,
    evidence,
    key_of,
    report,
)
from espalier.core.conditions import Finding
from espalier.core.manifests.scrubber import NOTHING, Handed
from espalier.core.pods import pods
from espalier.core.pods.pods import JobState, Pod

BYTES_INTACT = "BytesIntact"
# On a TrainableModel: whatever a person writes there, when it is new, asks for a scrub now.
SCRUB = "espalier.dev/scrub"
# Of that the status keeps no more, and annotations may be long.
_ASKED_CHARS = 256
# The batch of a Job: what is read is on record after so many checkpoints, or bytes.
BATCH, BATCH_BYTES = 200, 64 << 30
NAMED_MOST = 32
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OFF = "spec.storage.scrub.intervalHours is 0"
SETTLE_SECONDS = 1.0
RETRY = timedelta(hours=1)
# A Job and its pods are watched apart.
UNSEEN = timedelta(minutes=1)
# A pass begins within this part of an interval from when it is due, or waits for its moment.
PUNCTUAL = 24

JobAction = Literal["Keep", "Create", "Delete"]


@dataclass(frozen=True)
class ScrubView:
    """All that the decision depends on; ``checkpoints`` are those of the tree, by name."""

    model: TrainableModel
    checkpoints: Mapping[str, Checkpoint]
    job: JobState | None = None
    job_pods: Sequence[Pod] = ()
    handed: Handed = NOTHING


@dataclass(frozen=True)
class ScrubDecision:
    """The status to write, and what to do about the Job; ``unsettled`` are to be looked at again.

    ``read_bytes`` are those of a batch that has just been recorded.
    """

    status: Scrub | None
    finding: Finding
    job: JobAction = "Keep"
    batch: Sequence[Checkpoint] = ()
    base: bool = False
    unsettled: Sequence[str] = ()
    again_seconds: float | None = None
    read_bytes: int = 0


def decide(view: ScrubView, now: str) -> ScrubDecision:
    """What the scrub of a model does next; ``now`` is RFC 3339."""
    known, spec = view.model.status.scrub, view.model.spec.storage.scrub
    asked = _asked(view.model)
    if spec.interval_hours == 0 and not asked:
        return _off(view, known)
    under_way = known if known is not None and known.ended is None else None
    if view.job is not None:
        return _with_job(view, under_way or _begun(view, now), now)
    if under_way is not None:
        return _next_batch(view, under_way, now)
    if asked and asked != (known.requested if known is not None else ""):
        return _next_batch(view, _begun(view, now), now)
    return _scheduled(view, now)


def _scheduled(view: ScrubView, now: str) -> ScrubDecision:
    """Begins a pass if its time has come."""
    known, hours = view.model.status.scrub, view.model.spec.storage.scrub.interval_hours
    if hours == 0:
        return ScrubDecision(known, _told(known, _OFF))
    last = known.ended if known is not None else None
    due = _time(last or view.model.metadata.creation_timestamp) + timedelta(hours=hours)
    wait = _wait(view.model.metadata.uid, due, timedelta(hours=hours), _time(now))
    if wait > timedelta():
        again = wait.total_seconds()
        return ScrubDecision(known, _told(known, "no scrub yet"), again_seconds=again)
    return _next_batch(view, _begun(view, now), now)


def _wait(uid: str, due: datetime, interval: timedelta, now: datetime) -> timedelta:
    """How long until a pass begins."""
    window = interval / PUNCTUAL
    if now < due + window:
        return due - now
    share = int.from_bytes(hashlib.sha256(uid.encode()).digest()[:8]) / 2**64
    since_moment = (now - (_EPOCH + interval * share)) % interval
    return interval - since_moment if since_moment >= window else timedelta()


def _asked(model: TrainableModel) -> str:
    return model.metadata.annotations.get(SCRUB, "")[:_ASKED_CHARS]


def _begun(view: ScrubView, now: str) -> Scrub:
    """A new pass, which holds what the one before found until it has looked for itself."""
    known = view.model.status.scrub
    begun = Scrub(began=now, requested=_asked(view.model))
    if known is None:
        return begun
    found = {**_rotten(view, known, read=(), bad=()), "rotten_base": known.rotten_base}
    return begun.model_copy(update=found)


def _rotten(
    view: ScrubView, status: Scrub, *, read: Sequence[str], bad: Sequence[str]
) -> dict[str, Any]:
    """The fields of the status that name what is rotten, once a batch is read.

    The status names no more than so many, and the rest are known by their conditions.
    """
    kept = [
        name
        for name, checkpoint in view.checkpoints.items()
        if (name in status.rotten or _says_so(checkpoint)) and name not in read
    ]
    found = sorted({*kept, *bad})
    return {"rotten": found[:NAMED_MOST], "rotten_count": len(found)}


def _says_so(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's condition is what a scrub found."""
    damage = conditions.true(checkpoint.status.conditions, conditions.STALLED)
    return damage is not None and damage.reason in REASONS


def _off(view: ScrubView, known: Scrub | None) -> ScrubDecision:
    """Turned off: a pass under way ends where it is, and says nothing."""
    kept = known if known is not None and known.ended is not None else None
    running = view.job is not None and not view.job.terminating
    return ScrubDecision(kept, _told(kept, _OFF), "Delete" if running else "Keep")


def _next_batch(view: ScrubView, status: Scrub, now: str) -> ScrubDecision:
    """The Job for what is left of a pass; without any the pass is over."""
    resolved = view.model.status.resolved
    wait = _time(status.retry) - _time(now) if status.retry is not None else timedelta()
    if resolved is None or wait > timedelta():
        again = wait.total_seconds() if wait > timedelta() else None
        return ScrubDecision(status, _told(status, "begun"), again_seconds=again)
    first = status.after is None
    left = _left(view, status)
    if not first and not left:
        done = status.model_copy(update={"ended": now, "after": None})
        return ScrubDecision(done, _told(done, ""), again_seconds=SETTLE_SECONDS)
    size, batch = 0, list[Checkpoint]()
    for checkpoint in left[:BATCH]:
        size += checkpoint.spec.size_bytes
        if batch and size > BATCH_BYTES:
            break
        batch.append(checkpoint)
    return ScrubDecision(status, _told(status, "begun"), "Create", batch, base=first)


def _left(view: ScrubView, status: Scrub) -> list[Checkpoint]:
    """What a pass has not read yet; of a model that trains it would never end with the newer."""
    began, after = _time(status.began), status.after or ""
    return [
        checkpoint
        for name, checkpoint in sorted(view.checkpoints.items())
        if name > after and _time(checkpoint.metadata.creation_timestamp) <= began
    ]


def _with_job(view: ScrubView, status: Scrub, now: str) -> ScrubDecision:
    """Waits for a Job and for what it found to be on record, then records the batch."""
    assert view.job is not None
    if view.job.terminating:
        return ScrubDecision(status, _told(status, ""))
    found = report(view.job, view.job_pods)
    if found is None and _left_nothing(view, now):
        ended = view.job.failure if view.job.failed else ""
        why = pods.last_words(view.job_pods) or ended or "it left no report"
        retry = (_time(now) + RETRY).isoformat(timespec="seconds").replace("+00:00", "Z")
        failed = status.model_copy(update={"retry": retry, "failure": why[:400]})
        return ScrubDecision(failed, _told(failed, ""), "Delete")
    if found is None:
        waits = pods.waiting(view.job_pods)
        finding = _told(status, f"reading. {waits}".strip(" ."))
        again = SETTLE_SECONDS if view.job.finished else None
        return ScrubDecision(status, finding, again_seconds=again)
    if unsettled := _unsettled(view, found):
        finding = _told(status, "reading")
        return ScrubDecision(status, finding, unsettled=unsettled, again_seconds=SETTLE_SECONDS)
    read = view.handed.names[: found.checked]
    if status.after is not None and (not read or read[-1] <= status.after):
        # On record, and not yet seen to be gone.
        return ScrubDecision(status, _told(status, "reading"), "Delete")
    recorded = _recorded(view, status, found)
    return ScrubDecision(recorded, _told(recorded, ""), "Delete", read_bytes=found.read_bytes)


def _left_nothing(view: ScrubView, now: str) -> bool:
    """Whether a Job has ended without a report: of one that is complete the pods may follow."""
    job = view.job
    if job is None or not job.complete:
        return job is not None and job.failed
    return not job.completed or _time(now) - _time(job.completed) > UNSEEN


def _unsettled(view: ScrubView, found: Report) -> list[str]:
    """The checkpoints whose condition does not say yet what the Job found."""
    unsettled = []
    for name in view.handed.names[: found.checked]:
        checkpoint = view.checkpoints.get(name)
        if checkpoint is None or checkpoint.metadata.deletion_timestamp is not None:
            continue
        fault = evidence(found, view.handed, checkpoint)
        if isinstance(fault, Fault) != _says_so(checkpoint):
            unsettled.append(name)
    return unsettled


def _recorded(view: ScrubView, status: Scrub, found: Report) -> Scrub:
    """The status after a batch."""
    read = view.handed.names[: found.checked]
    bad = [
        name
        for name in read
        if (c := view.checkpoints.get(name)) is not None and key_of(c.spec.digest) in found.rotten
    ]
    base = found.base if view.handed.base else status.rotten_base
    return status.model_copy(
        update={
            "after": read[-1] if read else status.after or "",
            "rotten_base": base or None,
            "checkpoints": status.checkpoints + len(read),
            "read_bytes": status.read_bytes + found.read_bytes,
            **_rotten(view, status, read=read, bad=bad),
            "retry": None,
            "failure": None,
        }
    )


def _told(status: Scrub | None, otherwise: str) -> Finding:
    """BytesIntact, as of the pass under way or the last one."""
    if status is None:
        return Finding(BYTES_INTACT, "Unknown", "NotScrubbed", otherwise)
    what = f"{status.checkpoints} checkpoints and the base, {status.read_bytes} bytes"
    when = f"until {status.ended}" if status.ended else f"since {status.began}, and reads on"
    if status.rotten_base:
        message = (
            f"the base: {status.rotten_base}. What has loaded it goes on, and nothing loads it "
            "again: restore its directory from a copy of the volume, or delete the directory and "
            "the model's importer Job, and it is imported again"
        )
        return Finding(BYTES_INTACT, "False", "BaseRotten", message)
    if status.rotten:
        more = status.rotten_count - len(status.rotten)
        names = ", ".join(status.rotten) + (f" and {more} more" if more else "")
        message = f"{names}: their conditions say why, and what to do. Read {what} {when}"
        return Finding(BYTES_INTACT, "False", "CheckpointsRotten", message)
    if status.failure:
        message = f"the scrub failed and is tried again at {status.retry}: {status.failure}"
        return Finding(BYTES_INTACT, "Unknown", "ScrubFailed", message)
    if status.ended is None:
        return Finding(BYTES_INTACT, "Unknown", "Scrubbing", f"{otherwise}: read {what} {when}")
    return Finding(BYTES_INTACT, "True", "Scrubbed", f"read {what} {when}")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
