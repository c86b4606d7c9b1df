"""Completions that meet a rollout of full weights (adapter.type Full) while its head moves.

Such a rollout serves one checkpoint, and switches before the head's status says so. It answers 409
to a request for any other checkpoint, and to a completion that it interrupted to swap weights.
"""

from __future__ import annotations

from espalier.core.head.head_request import TRACK
from espalier.core.names import BASE
from espalier.gateway.problems import RefusalError, not_ready
from espalier.gateway.world.routing import Slug, Target, resolve
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import ServedWorld

MOVE_SECONDS = 60.0
# A request is sent once, and again after each move that interrupted it.
SENDINGS = 3


class NotLoadedError(Exception):
    """No rollout serves the needed checkpoint; ``str`` is the message of the last one."""


async def after_the_move(
    view: WorldWatch, slug: Slug, ref: str, tried: Target, error: NotLoadedError
) -> Target:
    """Where to send a completion that was refused, once its head has moved.

    Raises:
        RefusalError: 409, the head does not go where the request wants to; 503, it takes too long.
    """
    if ref and not _goes_to(view.world, slug, ref):
        raise RefusalError(
            409,
            "CheckpointNotLoaded",
            str(error),
            f"Rollouts of {slug.model.name} (adapter.type Full) serve one checkpoint at a time: "
            f"sample {slug.head.name} for the head's, or have the head point at {ref}",
        )

    def moved(world: ServedWorld) -> Target | None:
        if slug.model not in world.models:
            return None
        meant = resolve(world, slug.model, ref, slug.head)
        if not isinstance(meant, Target):
            return None
        arrived = _is_at(world, slug, ref) if ref else meant.adapter != tried.adapter
        return meant if arrived else None

    target = await view.wait_for(moved, MOVE_SECONDS)
    if target is None:
        raise not_ready("HeadMoving", f"{slug.head.name} is being moved: {error}")
    return target


def _goes_to(world: ServedWorld, slug: Slug, ref: str) -> bool:
    """Whether the head is at the named checkpoint or on its way there.

    A tracking head is on its way to a newer one of its branch before its status says so.
    """
    head = world.heads.get(slug.head)
    if head is None or head.status.target is None:
        return False
    if head.status.target.name == _name(ref):
        return True
    named, current = world.checkpoints.get(slug.model.beside(ref)), head.status.current
    if named is None or current is None or head.spec.mode != TRACK or head.spec.gate is not None:
        return False
    return named.spec.branch == head.status.branch and named.spec.step > current.step


def _is_at(world: ServedWorld, slug: Slug, ref: str) -> bool:
    head = world.heads.get(slug.head)
    current = head.status.current if head is not None else None
    return current is not None and current.name == _name(ref)


def _name(ref: str) -> str:
    """The checkpoint's name as a head's status writes it: empty for the base."""
    return "" if ref == BASE else ref
