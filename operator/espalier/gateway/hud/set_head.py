"""Moves a head for HUD's client: training and serving continue from the named checkpoint.

Two edits of the head's spec: Pin with onPin Branch, and, once the operator serves the checkpoint
and has a branch for it, Track, so that the branch's own steps are promoted as they come. Repeating
an interrupted move completes it. A head that Git owns is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espalier.core.gitowner import REQUESTED_BY, GitOwner, git_owner
from espalier.core.head.head_request import BRANCH, PIN, TRACK, ref_name
from espalier.gateway.access.auth import User
from espalier.gateway.access.on_behalf import acting_for, refused
from espalier.gateway.problems import RefusalError, not_ready
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName, ServedWorld
from espalier.kube.cluster import Cluster, ClusterError
from espalier.kube.contention import despite_contention
from espalier.kube.objects import ObjectKey

SERVED_SECONDS = 60.0

Body = dict[str, Any]


class HeadMoves:
    """Edits heads in users' names."""

    def __init__(self, watch: WorldWatch, cluster: Cluster) -> None:
        self._watch = watch
        self._cluster = cluster

    async def move(self, user: User, model: NamespacedName, checkpoint: str) -> None:
        """Returns once the head serves the checkpoint and training goes on from it."""
        world = self._watch.world
        require_checkpoint(world, model, checkpoint)
        if stands_on(world, model, checkpoint):
            return
        pin = {"mode": PIN, "checkpointRef": {"name": checkpoint}, "onPin": BRANCH}
        await self.edit(user, model, pin)
        served = await self._watch.wait_for(
            lambda now: True if _branched(now, model, checkpoint) else None, SERVED_SECONDS
        )
        if served is None:
            raise not_ready(
                "HeadNotServed",
                f"the head of {model} is pinned to {checkpoint}, and its rollouts did not serve it "
                f"within {SERVED_SECONDS:.0f} s: {_why(self._watch.world, model)}",
                "Send it again to complete the move",
            )
        await self.edit(user, model, {"mode": TRACK})
        await self._watch.wait_for(
            lambda now: True if _tracks(now, model) else None, SERVED_SECONDS
        )

    async def edit(self, user: User, name: NamespacedName, change: Body) -> None:
        """Writes another request into a head's spec; RefusalError 409 if Git owns the head."""
        key = ObjectKey("CheckpointHead", name.namespace, name.name)

        async def edit() -> None:
            head = await self._cluster.get(key)
            if head is None:
                raise RefusalError(404, "HeadNotFound", f"there is no head {name}")
            owner = git_owner(head["metadata"])
            if owner is not None:
                raise owned_by_git(owner, name, change)
            await acting_for(self._cluster, user).replace(
                "CheckpointHead", edited(head, change, user)
            )

        try:
            # The operator writes the status in between.
            await despite_contention(edit)
        except ClusterError as error:
            raise refused(error, user, f"CheckpointHead {name}", "HeadNotEdited") from error


def edited(head: Mapping[str, Any], change: Body, user: User) -> Body:
    """The head with another request in its spec, annotated with the user who asked for it."""
    spec = {k: v for k, v in head["spec"].items() if k not in ("mode", "checkpointRef", "onPin")}
    # managedFields cannot be sent back: the API server maintains them.
    metadata = {k: v for k, v in head["metadata"].items() if k != "managedFields"}
    annotations = {**(metadata.get("annotations") or {}), REQUESTED_BY: user.name}
    rest = {k: v for k, v in head.items() if k not in ("metadata", "spec")}
    return {
        **rest,
        "metadata": {**metadata, "annotations": annotations},
        "spec": {**spec, **change},
    }


def owned_by_git(owner: GitOwner, head: NamespacedName, change: Body) -> RefusalError:
    """409 with the commit to make: an edit of what Git owns would be undone."""
    asked = [f"spec.mode: {change['mode']}"]
    if "checkpointRef" in change:
        asked += [f"spec.checkpointRef.name: {change['checkpointRef']['name']}"]
        asked += [f"spec.onPin: {change['onPin']}"]
    return RefusalError(
        409,
        "HeadOwnedByGit",
        f"Git owns the head {head} through {owner}, which would undo this edit",
        f"Commit it instead: in CheckpointHead {head.name} of namespace {head.namespace} set "
        + " and ".join(filter(None, (", ".join(asked[:-1]), asked[-1]))),
    )


def stands_on(world: ServedWorld, model: NamespacedName, checkpoint: str) -> bool:
    """Whether the head follows a branch on which the checkpoint is the newest."""
    head = world.head_of(model)
    if head is None or head.status.current is None or not _tracks(world, model):
        return False
    latest = ref_name(head.status.latest)
    return head.status.current.name == checkpoint and latest in ("", checkpoint)


def _tracks(world: ServedWorld, model: NamespacedName) -> bool:
    head = world.head_of(model)
    agreed = head.status.agreed if head is not None else None
    return (
        agreed is not None and agreed.mode == TRACK and head is not None and head.spec.mode == TRACK
    )


def _branched(world: ServedWorld, model: NamespacedName, checkpoint: str) -> bool:
    head = world.head_of(model)
    agreed = head.status.agreed if head is not None else None
    if head is None or agreed is None or head.status.current is None:
        return False
    return (agreed.name, agreed.on_pin) == (
        checkpoint,
        BRANCH,
    ) and head.status.current.name == checkpoint


def require_checkpoint(world: ServedWorld, model: NamespacedName, checkpoint: str) -> None:
    """Refuses the name of a checkpoint that is neither the model's own nor the one it grew from."""
    target = world.checkpoints.get(model.beside(checkpoint))
    root = world.models[model].status.root_checkpoint_ref
    own = target is not None and target.spec.model_ref.name == model.name
    if not own and (root is None or root.name != checkpoint):
        raise RefusalError(
            404,
            "CheckpointNotFound",
            f"model {model} has no checkpoint {checkpoint!r}",
            f"GET /v2/models/{model}/checkpoints lists them",
        )


def _why(world: ServedWorld, model: NamespacedName) -> str:
    head = world.head_of(model)
    conditions = head.status.conditions if head is not None else []
    unready = (c.message for c in conditions if c.type == "Ready" and c.status != "True")
    return next(unready, "the operator has not reconciled it yet")
