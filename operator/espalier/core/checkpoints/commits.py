"""Which commits of a trainer become Checkpoints, and as what.

A commit joins a branch only if it extends it: its parent is the branch's tip (or base) and its
term is not below the tip's. On the live branch it must also carry the live term, so that a
trainer that was left behind by a rollback can never move the head.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from espalier.api.checkpoint import Checkpoint, CheckpointSpec, Hyperparameters
from espalier.api.checkpointhead import CheckpointHead
from espalier.api.meta import API_VERSION, ObjectRef, decimal_string
from espalier.api.wire.commits import Commit
from espalier.core import conditions
from espalier.core.checkpoints import run_tokens, taskset_used
from espalier.core.head import head_request
from espalier.core.lineage import measurements
from espalier.core.lineage.lineage import BASE_POINT, Lineage, Point, point, upto
from espalier.core.manifests import labels
from espalier.core.names import MAIN, checkpoint_name
from espalier.core.volume import checkpoint_uri

RUN_SEPARATOR = "/"


@dataclass(frozen=True)
class Accepted:
    """The commit becomes a Checkpoint below ``parent``."""

    parent: Point


@dataclass(frozen=True)
class Known:
    """The commit is a Checkpoint already."""


@dataclass(frozen=True)
class Passed:
    """The commit's Checkpoint or bytes were deleted: the branch has grown past it."""


@dataclass(frozen=True)
class Fenced:
    """The commit stays out of the tree; its bytes stay on the volume."""

    reason: str
    message: str


@dataclass(frozen=True)
class NameTaken:
    """Another object has the commit's name: the commit waits until that object is deleted."""

    reason: str
    message: str


Verdict = Accepted | Known | Passed | Fenced | NameTaken


def judge(
    commit: Commit,
    model: str,
    lineage: Lineage,
    head: CheckpointHead | None,
    holder: Checkpoint | None = None,
) -> Verdict:
    """Whether a commit joins the model's tree.

    Args:
        commit: what the trainer committed.
        model: the model whose trainer it is.
        lineage: the model's tree.
        head: the head of the model's name.
        holder: the Checkpoint that has the commit's name, of any model.
    """
    if commit.model != model:
        return Fenced("WrongModel", f"{commit.name} is a commit of model {commit.model}")
    own = checkpoint_name(model, commit.branch, commit.step)
    if commit.name != own:
        # Before anything is asked of the object of that name, which may be another model's.
        return Fenced(
            "WrongName", f"{commit.name} is not the name of a commit of {model}, {own} is"
        )
    if taken := _taken(commit, lineage, holder):
        return taken
    if not commit.stored or _passed(commit, lineage):
        return Passed()
    start, term = _growing_point(commit, lineage)
    if start is None:
        return Fenced(
            "ParentUnknown", f"{commit.name} starts from {_parent(commit)}, not in the tree"
        )
    if head is not None:
        term = max(term, head_request.fence(head, commit.branch))
    return _misfit(commit, start, term) or Accepted(start)


def _taken(commit: Commit, lineage: Lineage, holder: Checkpoint | None) -> Verdict | None:
    """The verdict on a commit whose name a Checkpoint already has; None without one."""
    known = lineage.by_name.get(commit.name)
    if known is not None and known.spec.digest == commit.digest:
        return Known()
    if known is None and holder is not None and _leaves(holder, commit, lineage):
        return Passed()
    refused = known is not None and conditions.is_true(known.status.conditions, conditions.STALLED)
    if refused or (known is None and holder is not None):
        message = f"Checkpoint {commit.name} is not the commit of that name: delete it"
        if holder is not None and holder.metadata.deletion_timestamp is not None:
            message = f"an earlier Checkpoint {commit.name} is being deleted: the commit waits"
        return NameTaken("NameTaken", message)
    if known is not None:
        return Fenced("NameTaken", f"{commit.name} is another checkpoint, {known.spec.digest}")
    return None


def _leaves(holder: Checkpoint, commit: Commit, lineage: Lineage) -> bool:
    """Whether the object is the commit's own, of no tree any more, and about to go."""
    own = (holder.spec.model_ref.name, holder.spec.digest) == (commit.model, commit.digest)
    return own and commit.name not in lineage.faults


def _passed(commit: Commit, lineage: Lineage) -> bool:
    """Whether the commit is below the tip of its branch, and of no later term than what follows.

    A trainer tells all of its commits to every new operator, those deleted since included.
    """
    line = lineage.by_branch.get(commit.branch, [])
    after = line[upto(line, commit.step) :][:1]
    return bool(after) and commit.term <= after[0].spec.term


def _misfit(commit: Commit, start: Point, term: int) -> Fenced | None:
    """Why a commit does not extend its branch, which stands at ``start`` and takes ``term`` on."""
    if (commit.parent, commit.step) != (start.digest, start.step + 1):
        return Fenced(
            "NotTheTip",
            f"{commit.name} starts from {_parent(commit)}, but {commit.branch} stands at "
            f"{start.name or 'its base'}",
        )
    if commit.term < term:
        return Fenced(
            "StaleTerm",
            f"{commit.name} was made under term {commit.term}, {commit.branch} is at {term}",
        )
    return None


def _growing_point(commit: Commit, lineage: Lineage) -> tuple[Point | None, int]:
    """Where the commit's branch stands and the lowest term that may extend it."""
    tip = lineage.tip(commit.branch)
    if tip is not None:
        return point(tip), tip.spec.term
    if commit.branch == MAIN:
        return lineage.root, 1
    own = [point(c) for c in lineage.by_name.values() if c.spec.digest == commit.parent]
    starts = own or [p for p in (lineage.root, BASE_POINT) if p and p.digest == commit.parent]
    return (starts[0] if starts else None), int(commit.branch.removeprefix("b"))


def _parent(commit: Commit) -> str:
    return commit.parent_name or "the base"


def run_identity(name: str, uid: str) -> str:
    """What the trainer counts steps for: a run that is deleted and made again starts at 0."""
    return f"{name}{RUN_SEPARATOR}{uid}"


def run_name(commit: Commit) -> str:
    """The name of the TrainingRun that a commit belongs to."""
    return commit.run.partition(RUN_SEPARATOR)[0]


def run_uid(commit: Commit) -> str:
    """The uid of the TrainingRun that a commit belongs to."""
    return commit.run.partition(RUN_SEPARATOR)[2]


def checkpoint_body(commit: Commit, namespace: str, parent: Point) -> dict[str, Any]:
    """The Checkpoint object of an accepted commit; ownerless, for it outlives run and model."""
    run = run_name(commit)
    spec = CheckpointSpec(
        model_ref=ObjectRef(name=commit.model),
        run_ref=ObjectRef(name=run) if run else None,
        parent_ref=ObjectRef(name=parent.name) if parent.name else None,
        step=commit.step,
        branch=commit.branch,
        term=commit.term,
        uri=checkpoint_uri(commit.digest),
        digest=commit.digest,
        size_bytes=commit.size_bytes,
        lora_rank=commit.lora_rank,
        hyperparameters=Hyperparameters(
            learning_rate=decimal_string(commit.learning_rate),
            group_size=commit.group_size,
            loss=commit.loss,
        ),
    )
    metrics = {name: decimal_string(value) for name, value in sorted(commit.metrics.items())}
    return {
        "apiVersion": API_VERSION,
        "kind": "Checkpoint",
        "metadata": {
            "name": commit.name,
            "namespace": namespace,
            "labels": {
                **labels.MANAGED,
                labels.MODEL: commit.model,
                labels.BRANCH: commit.branch,
            }
            | ({labels.RUN: run} if run else {}),
            "annotations": {
                labels.METRICS_ANNOTATION: json.dumps(metrics),
                labels.MEASURED_ANNOTATION: measurements.annotation(commit.measured),
                labels.RUN_STEP_ANNOTATION: str(commit.run_step),
                labels.RUN_TOKENS_ANNOTATION: run_tokens.annotation(commit.run_tokens),
                labels.RUN_UID_ANNOTATION: run_uid(commit),
                **taskset_used.annotated(commit),
            },
        },
        "spec": spec.wire(),
    }
