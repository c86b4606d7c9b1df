"""The head of a model: what the slug serves and what training continues from.

Every pass derives the state from spec and status; no phase is stored. Order of effects: acknowledge
in ``status.target``, have the rollouts load it, read back, then write ``status.current``; a crash
between any two is harmless. What the operator last agreed to is ``status.agreed``: the term
rises once when that request changes, and a request that cannot be met leaves everything as it is.

The leading head has its model's name and decides where training goes on; other heads only serve,
each under its own name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import (
    Agreed,
    CheckpointHeadStatus,
    CurrentCheckpoint,
    HeadMove,
    NameOnly,
    PodDigest,
)
from espalier.api.model.status import Endpoint
from espalier.core import conditions
from espalier.core.conditions import Finding
from espalier.core.head import head_conditions
from espalier.core.head.head_request import (
    BRANCH,
    CONTINUE,
    PAUSE,
    PIN,
    leads,
    passes,
    ref_name,
    requested,
    track,
)
from espalier.core.head.head_view import (
    HeadView,
    damage_on_record,
    has,
    is_current,
    is_ready,
    is_served,
)
from espalier.core.head.served_adapters import (
    DesiredAdapters,
    desired_adapters,
    fitting,
    held_point,
)
from espalier.core.lineage.lineage import Point, point
from espalier.core.names import adapter_name, branch_name

HISTORY = 20
# The reason of a move that no edit asked for.
ADVANCED = "Advanced"
SHOWN_PODS = 64


@dataclass(frozen=True)
class HeadDecision:
    """The status to write, then the adapters that the rollouts must load for all heads."""

    status: CheckpointHeadStatus
    load: tuple[DesiredAdapters, ...]
    moved: HeadMove | None = None


def decide(view: HeadView, now: str) -> HeadDecision:
    """The next status of a head; ``now`` is RFC 3339."""
    old = view.head.status
    if unfit := head_conditions.unfit(view):
        return _held(view, unfit, now)
    wanted = requested(view.head.spec, view.head.metadata.generation)
    refusal = head_conditions.refusal(view, wanted)
    status = _agree(view, None if refusal else wanted)
    target = _target(view, status, refused=refusal is not None)
    if target is None:
        findings = refusal or conditions.reconciling(
            "SourceNotResolved", "the checkpoint that the model forks from is not known yet"
        )
        return _held(view, findings, now)
    adapter = adapter_name(view.head.spec.model_ref.name, target.digest)
    acknowledged = old.target == NameOnly(name=target.name) and old.term == status.term
    served = is_served(view, adapter)
    status = status.model_copy(
        update={
            "target": NameOnly(name=target.name),
            "latest": _latest(view, status),
            "pods": _pods(view, target.digest),
            "endpoint": Endpoint(slug=view.head.metadata.name, url=view.gateway_url),
            "observed_generation": view.head.metadata.generation,
        }
    )
    moved = None
    if acknowledged and served and not is_current(status, target):
        status, moved = _move(status, target, now)
    desired = _desired(view, status)
    load = fitting(desired, view.model)
    findings = refusal or head_conditions.findings(
        view, status, target, served=served, crowded_out=_is_crowded_out(view, desired, load)
    )
    status = status.model_copy(
        update={"conditions": head_conditions.settle(view, status, findings, now)}
    )
    return HeadDecision(status, load, moved)


def _desired(view: HeadView, status: CheckpointHeadStatus) -> tuple[DesiredAdapters, ...]:
    """The adapters that all heads of the model want loaded, this one by its decided status."""
    own = view.head.model_copy(update={"status": status})
    others = [head for head in view.heads if head.metadata.name != own.metadata.name]
    return desired_adapters(own.spec.model_ref.name, [*others, own], view.lineage)


def _is_crowded_out(
    view: HeadView, desired: Sequence[DesiredAdapters], load: Sequence[DesiredAdapters]
) -> bool:
    """Whether the heads before this one need all adapters that a rollout can load."""
    wanted, kept = ({adapters.head for adapters in all_} for all_ in (desired, load))
    return view.head.metadata.name in wanted - kept


def _held(view: HeadView, findings: list[Finding], now: str) -> HeadDecision:
    """Keep the status: the served checkpoint stays served."""
    old = view.head.status
    status = old.model_copy(
        update={
            "observed_generation": view.head.metadata.generation,
            "conditions": head_conditions.settle(view, old, findings, now),
        }
    )
    return HeadDecision(status, fitting(_desired(view, status), view.model))


def _agree(view: HeadView, wanted: Agreed | None) -> CheckpointHeadStatus:
    """The status after the request, if any, is agreed to: term, branch, branchBase, agreed."""
    old = view.head.status
    if not leads(view.head):
        return _follow(view, wanted)
    status = old
    # A lineage that is ahead of its head was adopted from the files on the volume.
    if old.term == 0 or old.term < view.lineage.last_term():
        term = max(1, view.lineage.last_term(), view.lineage.term_before + 1)
        status = old.model_copy(update={"term": term, "branch": view.lineage.live_branch()})
    if wanted is not None and not (status.agreed and wanted.asks_same(status.agreed)):
        status = _transition(status, status.agreed or track(), wanted)
    if view.trainer_term > status.term:
        # The head was deleted and made again while its trainer continued: use a higher term.
        status = status.model_copy(update={"term": view.trainer_term + 1})
    return status


def _transition(
    status: CheckpointHeadStatus, agreed: Agreed, wanted: Agreed
) -> CheckpointHeadStatus:
    """The one place where an edit raises the term."""
    changes: dict[str, object] = {"agreed": wanted}
    resumes = agreed.on_pin == PAUSE and wanted.on_pin != PAUSE
    # Continue does not affect training, and after Branch the branch continues.
    if not wanted.asks_same(agreed) and (wanted.on_pin in (PAUSE, BRANCH) or resumes):
        changes["term"] = status.term + 1
    if wanted.on_pin == BRANCH:
        changes["branch"] = branch_name(status.term + 1)
        changes["branch_base"] = NameOnly(name=wanted.name)
    return status.model_copy(update=changes)


def _follow(view: HeadView, wanted: Agreed | None) -> CheckpointHeadStatus:
    """A head that only serves takes branch and term from the leading one."""
    changes: dict[str, object] = {}
    if wanted is not None:
        on_pin = CONTINUE if wanted.mode == PIN else None
        changes["agreed"] = wanted.model_copy(update={"on_pin": on_pin})
    if view.leader is not None:
        leader = view.leader.status
        changes |= {
            "term": max(leader.term, view.head.status.term),
            "branch": leader.branch,
            "branch_base": leader.branch_base,
        }
    return view.head.status.model_copy(update=changes)


def _target(view: HeadView, status: CheckpointHeadStatus, *, refused: bool) -> Point | None:
    """The checkpoint to serve; None if there is none."""
    agreed = status.agreed
    keeps = held_point(view.lineage, view.head)
    if agreed is None or refused:
        return keeps
    if agreed.mode == PIN:
        return view.lineage.place(agreed.name) or keeps
    start, beyond = _anchor(view, status, keeps)
    newest = next((c for c in beyond if is_ready(c) and passes(view.head.spec, c)), None)
    return point(newest) if newest is not None else start


def _anchor(
    view: HeadView, status: CheckpointHeadStatus, keeps: Point | None
) -> tuple[Point | None, Iterator[Checkpoint]]:
    """Where a tracking head stays, and the part of the live line that it may advance to.

    From the newest on: a long line behind the head costs nothing.
    """
    lineage, branch, base = view.lineage, status.branch, ref_name(status.branch_base)
    line = lineage.descending(branch, base)
    served = _point_served(status)
    for place in (keeps, served):
        if place is None or not lineage.on_line(place.name, branch, base):
            continue
        # Give up a target that was refused before it was served, but not a served one.
        if place == served or damage_on_record(lineage.by_name[place.name]) is None:
            return place, _above(line, place)
    if keeps is not None and lineage.place(keeps.name) is None:
        # Deleted, or not in the cache yet: neither may move the head back.
        return keeps, _above(line, keeps)
    if keeps == lineage.root:
        return keeps, line
    # Off the live line with nothing that passes: where the live branch started.
    start = lineage.place(lineage.base(branch) or base)
    below = (c for c in line if start is not None and c.spec.step <= start.step and is_ready(c))
    nearest = next(below, None)
    return (point(nearest) if nearest else lineage.root), lineage.descending(branch, base)


def _above(line: Iterator[Checkpoint], place: Point) -> Iterator[Checkpoint]:
    """The part of a line, newest first, that is above a place: steps only rise along it."""
    return takewhile(lambda checkpoint: checkpoint.spec.step > place.step, line)


def _point_served(status: CheckpointHeadStatus) -> Point | None:
    current = status.current
    return Point(current.name, current.step, current.digest) if current is not None else None


def _latest(view: HeadView, status: CheckpointHeadStatus) -> NameOnly | None:
    """The newest Ready checkpoint of the live branch and its ancestors."""
    line = view.lineage.descending(status.branch, ref_name(status.branch_base))
    if newest := next(filter(is_ready, line), None):
        return NameOnly(name=newest.metadata.name)
    return NameOnly(name=view.lineage.root.name) if view.lineage.root else None


def _pods(view: HeadView, digest: str) -> list[PodDigest]:
    """What each pod confirmed: the target, or else what is served until then."""
    current = view.head.status.current
    digests = [digest] if current is None else [digest, current.digest]
    model = view.head.spec.model_ref.name
    shown = []
    for rollout in sorted(view.rollouts, key=lambda rollout: rollout.name):
        loaded = (d for d in digests if has(rollout, adapter_name(model, d)))
        if (found := next(loaded, None)) is not None:
            shown.append(PodDigest(name=rollout.name, digest=found))
    return shown[:SHOWN_PODS]


def _move(
    status: CheckpointHeadStatus, target: Point, now: str
) -> tuple[CheckpointHeadStatus, HeadMove]:
    """The status once the rollouts serve the target."""
    agreed = status.agreed or track()
    if agreed.mode == PIN:
        reason = "Branched" if agreed.on_pin == BRANCH else "Pinned"
    else:
        was_pinned = bool(status.history) and status.history[0].reason in ("Pinned", "Branched")
        reason = "Unpinned" if was_pinned else ADVANCED
    move = HeadMove.model_validate(
        {
            "name": target.name,
            "step": target.step,
            "term": status.term,
            "reason": reason,
            "time": now,
        }
    )
    current = CurrentCheckpoint(
        name=target.name, step=target.step, digest=target.digest, term=status.term
    )
    previous = NameOnly(name=status.current.name) if status.current else status.previous
    changes = {
        "current": current,
        "previous": previous,
        "history": [move, *status.history][:HISTORY],
    }
    return status.model_copy(update=changes), move
