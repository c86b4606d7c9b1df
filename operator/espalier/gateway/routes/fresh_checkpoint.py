"""Whether the head serves a fresh checkpoint, or why it will not. Pure."""

from __future__ import annotations

from typing import Literal

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import Agreed, CheckpointHead
from espalier.core.head.head_request import PIN, TRACK, passes
from espalier.gateway.world.world import NamespacedName, ServedWorld

Promotion = Literal["Served", "Pinned", "Gated"]


def promotion(
    world: ServedWorld, model: NamespacedName, checkpoint: str, digest: str
) -> Promotion | None:
    """Whether the head of a model serves a checkpoint that was just committed.

    Args:
        world: the cluster as it is now.
        model: the trained model.
        checkpoint: name of the Checkpoint, which need not be there yet.
        digest: its digest.

    Returns:
        Served once the head serves it or one of its descendants; Pinned or Gated when the head will
        not move to it; None while that is undecided.
    """
    head = world.head_of(model)
    if head is None:
        return None
    committed = world.checkpoints.get(model.beside(checkpoint))
    agreed = head.status.agreed
    if _serves(head, agreed, committed, digest):
        return "Served"
    if agreed is not None and agreed.mode == PIN:
        return "Pinned"
    # Until its status is written a Checkpoint has no metrics to judge.
    judged = committed is not None and committed.status.observed_generation >= 0
    if committed is not None and judged and not passes(head.spec, committed):
        return "Gated"
    return None


def _serves(
    head: CheckpointHead, agreed: Agreed | None, committed: Checkpoint | None, digest: str
) -> bool:
    current = head.status.current
    if current is None:
        return False
    if current.digest == digest:
        return True
    # Inside one term steps are a line, so a later one was promoted over this one.
    return (
        committed is not None
        and agreed is not None
        and agreed.mode == TRACK
        and current.term == committed.spec.term
        and current.step > committed.spec.step
    )
