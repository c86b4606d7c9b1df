"""What a model forks from: a base that a Job imports, or a checkpoint of another model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import ValidationError

from espalier.api.checkpoint import Checkpoint
from espalier.api.source import ImportProgress, Resolved
from espalier.api.trainablemodel import TrainableModel
from espalier.api.wire.import_state import ImportState
from espalier.core import conditions
from espalier.core.conditions import Finding
from espalier.core.model import import_progress
from espalier.core.names import importer_name
from espalier.core.pods import pods
from espalier.core.pods.blockers import Blocker
from espalier.core.pods.pods import JobState, Pod
from espalier.core.pods.queued import Wait

_SILENT = "it has yet to say how far it is"
ImporterAction = Literal["Keep", "Create", "Delete"]


@dataclass(frozen=True)
class SourceView:
    """All that the source's decision depends on; ``origin_model`` is the model of ``origin``.

    ``blocker`` is why the importer's Job gets no pod, where only Events tell; ``queued`` why it
    waits for a quota; ``import_state`` the progress that its pod reports.
    """

    model: TrainableModel
    origin: Checkpoint | None = None
    origin_model: TrainableModel | None = None
    importer: JobState | None = None
    importer_pods: Sequence[Pod] = ()
    blocker: Blocker | None = None
    queued: Wait | None = None
    import_state: ImportState | None = None


@dataclass(frozen=True)
class SourceDecision:
    """``permanent``: nothing changes until a person acts."""

    resolved: Resolved | None
    finding: Finding
    importer: ImporterAction = "Keep"
    permanent: bool = False
    progress: ImportProgress | None = None


def decide(view: SourceView) -> SourceDecision:
    """Whether the source is known, and what to do about the importer; once known it stays known."""
    if view.model.status.resolved is not None:
        return _known(view.model.status.resolved, _clearing(view))
    if view.model.spec.source.checkpoint_ref is not None:
        return _fork(view)
    return _import(view)


def _known(resolved: Resolved, importer: ImporterAction = "Keep") -> SourceDecision:
    message = f"the base is {resolved.digest}"
    if (end := resolved.unstopped_turn_end) is not None:
        message += f"; {end.shown}: sample with stopTokenIds: [{end.token_id}]"
    return SourceDecision(
        resolved, Finding(conditions.SOURCE_RESOLVED, "True", "Resolved", message), importer
    )


def _clearing(view: SourceView) -> ImporterAction:
    """Delete a finished Job that its sidecars would keep alive."""
    job = view.importer
    if job is None or job.finished or job.terminating:
        return "Keep"
    return "Delete" if pods.outlived(view.importer_pods) else "Keep"


def _missing(reason: str, message: str, *, permanent: bool) -> SourceDecision:
    finding = Finding(conditions.SOURCE_RESOLVED, "False", reason, message)
    return SourceDecision(None, finding, permanent=permanent)


def _fork(view: SourceView) -> SourceDecision:
    """A fork shares its origin's base, so everything that the bytes depend on must agree."""
    ref = view.model.spec.source.checkpoint_ref
    name = ref.name if ref else ""
    if view.origin is None:
        return _missing(
            "CheckpointNotFound",
            f"spec.source.checkpointRef: Checkpoint {name} does not exist in this namespace",
            permanent=True,
        )
    if view.origin.metadata.deletion_timestamp is not None:
        return _missing(
            "CheckpointDeleted",
            f"spec.source.checkpointRef: Checkpoint {name} is being deleted: name another in a new "
            "TrainableModel",
            permanent=True,
        )
    owner = view.origin.spec.model_ref.name
    if view.origin_model is None:
        return _missing(
            "ModelNotFound",
            f"spec.source.checkpointRef: {name} belongs to TrainableModel {owner}, which does not "
            "exist: its base is not known. Create that model again, or fork from the base",
            permanent=True,
        )
    if mismatch := _mismatch(view.model, view.origin, view.origin_model):
        return _missing("SourceMismatch", mismatch, permanent=True)
    if view.origin_model.status.resolved is None:
        return _missing("Resolving", f"waits for the base of model {owner}", permanent=False)
    # The adapter is where the origin's model started from, not where the fork does.
    return _known(view.origin_model.status.resolved.model_copy(update={"adapter": None}))


def _mismatch(model: TrainableModel, origin: Checkpoint, parent: TrainableModel) -> str:
    own, theirs = model.spec, parent.spec
    if own.adapter.type != theirs.adapter.type:
        return (
            f"spec.adapter.type is {own.adapter.type}, and {origin.metadata.name} was trained as "
            f"{theirs.adapter.type}: its weights do not fit. Create another TrainableModel of type "
            f"{theirs.adapter.type}, or one whose base is what espalier checkpoint export --merged "
            "writes"
        )
    pairs = (
        (
            "spec.storage.persistentVolumeClaim.claimName",
            own.storage.persistent_volume_claim.claim_name,
            theirs.storage.persistent_volume_claim.claim_name,
        ),
        ("spec.adapter.rank", own.adapter.rank, origin.spec.lora_rank or theirs.adapter.rank),
        ("spec.adapter.alpha", own.adapter.alpha, theirs.adapter.alpha),
        (
            "spec.adapter.targetModules",
            sorted(own.adapter.target_modules),
            sorted(theirs.adapter.target_modules),
        ),
    )
    wrong = [f"{field} is {mine}, must be {other}" for field, mine, other in pairs if mine != other]
    if not wrong:
        return ""
    return (
        f"a fork of {origin.metadata.name} takes over its storage and adapter: "
        f"{'; '.join(wrong)}. Create another TrainableModel, these fields are immutable"
    )


def _import(view: SourceView) -> SourceDecision:
    job = view.importer
    if job is None:
        return _importing("the importer starts", "Create")
    if job.terminating:
        return _importing("the importer is being replaced", "Keep")
    wanted = view.model.spec.source.adapter is not None
    resolved = next((r for p in view.importer_pods if (r := _report(p, adapter=wanted))), None)
    if job.complete:
        # Its pod is gone with its report: importing again is cheap and ends in the same place.
        return _known(resolved) if resolved else _importing("the base is read again", "Delete")
    if job.failed:
        return _failed(view, job)
    if kept := pods.outlived(view.importer_pods):
        return _known(resolved) if resolved else _outlived(view, kept)
    return _unfinished(view, job)


def _unfinished(view: SourceView, job: JobState) -> SourceDecision:
    """What an import waits for, or how far it is."""
    name = importer_name(view.model.metadata.name)
    if view.queued is not None:
        return _missing(view.queued.reason, f"importer: {view.queued.message}", permanent=False)
    if job.suspended:
        message = (
            f"Job {name} is suspended by hand: it starts when spec.suspend of the Job is false"
        )
        return _missing("JobSuspended", message, permanent=False)
    present = pods.live(view.importer_pods)
    if view.blocker is not None and not view.importer_pods:
        message = f"Job {name} gets no pod: {view.blocker.message}"
        return _missing(view.blocker.reason, message, permanent=False)
    reason = next((p.waiting_reason for p in present if p.waiting_reason), "")
    if reason in ("", "Starting"):
        words = pods.last_words(view.importer_pods)
        again = f"; tried again after: {words}" if words else ""
        placing = any(pod.placing for pod in present)
        if placing:
            progress = import_progress.whole(view.model)
        else:
            progress = import_progress.told(view.import_state)
        silent = "its bytes are there, and are checked" if placing else _SILENT
        far = import_progress.shown(progress) if progress else silent
        message = f"the importer brings the base to the volume ({far}){again}"
        return replace(_importing(message, "Keep"), progress=progress)
    return _missing(reason, pods.waiting(present), permanent=False)


def _outlived(view: SourceView, kept: Pod) -> SourceDecision:
    """The importer is over without a report, and its Job can neither end nor try again."""
    retry = "Then delete the Job to try again"
    if kept.problem is not None:
        message = f"{kept.problem.text}. {retry}: {pods.keepers(kept)}"
        return _missing(kept.problem.reason, message, permanent=True)
    return _missing("SidecarRunning", f"{pods.keepers(kept)}. {retry}", permanent=True)


def _importing(message: str, action: ImporterAction) -> SourceDecision:
    finding = Finding(conditions.SOURCE_RESOLVED, "False", "Importing", message)
    return SourceDecision(None, finding, action)


def _failed(view: SourceView, job: JobState) -> SourceDecision:
    retry = "After a repair outside of the cluster, delete the Job to try again"
    if found := pods.problem(view.importer_pods):
        return _missing(found.reason, f"{found.text}. {retry}", permanent=True)
    if copying := next((p.copying for p in view.importer_pods if p.copying), ""):
        adapter = view.model.spec.source.adapter
        field = "spec.source.base.image"
        if adapter is not None and adapter.image is not None:
            field += " or spec.source.adapter.image"
        return _missing(
            "BaseUnreadable",
            f"{field}: the image has no readable files under /models ({copying}). "
            f"Name an image with the model's files there. {retry}",
            permanent=True,
        )
    words = pods.last_words(view.importer_pods)
    if left := next((p.told for p in view.importer_pods if p.told), None):
        message = f"{left.text}. It was tried again in vain ({job.failure}). {retry}"
        return _missing(left.reason, message, permanent=True)
    last = f" The last try: {words}." if words else ""
    return _missing("ImportFailed", f"{job.failure}.{last} {retry}", permanent=True)


def _report(pod: Pod, *, adapter: bool) -> Resolved | None:
    """What was left in its termination message by the container that puts bytes in place.

    The importer before it has opened strangers' bytes, and may say what they like.
    """
    if pod.preparing:
        return None
    try:
        found = Resolved.model_validate(json.loads(pod.message))
    except (ValueError, ValidationError):
        return None
    return found if (found.adapter is not None) == adapter else None
