"""Forks for HUD's client: creates a model, its head and a client-driven run for a user.

They are created in the caller's name. Rights are asked for before, so that none is left half made
for want of one. Repeating an interrupted call completes it: a fork by name is made model last, and
exists once its model does; a model that says by annotations what it was made for is made first, and
owns the others.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from espalier.api.meta import NAME_PATTERN, ObjectMeta
from espalier.core.gitowner import REQUESTED_BY
from espalier.core.manifests.intent import owner_reference
from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.access.offers import Offer
from espalier.gateway.access.on_behalf import acting_for, refused
from espalier.gateway.access.rights import SEE
from espalier.gateway.problems import RefusalError, not_ready
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName, ServedWorld
from espalier.kube.cluster import Cluster, ClusterError
from espalier.kube.objects import ObjectKey

# The kind requires a number of steps, while a client trains as long as it likes.
STEPS = 10_000_000
SEEN_SECONDS = 10.0
MAX_NAME_CHARS = 40

Body = dict[str, Any]
KINDS = {
    "CheckpointHead": "checkpointheads",
    "TrainingRun": "trainingruns",
    "TrainableModel": "trainablemodels",
}


class Forks:
    """Creates forks."""

    def __init__(self, watch: WorldWatch, cluster: Cluster, auth: Authenticator) -> None:
        self._watch = watch
        self._cluster = cluster
        self._auth = auth

    async def of_model(self, user: User, source: NamespacedName, name: str) -> NamespacedName:
        """Forks an existing model."""
        return await self._make(
            user, source.beside(_checked(name)), model_spec(self._watch.world, source)
        )

    async def of_base(self, user: User, offer: Offer, name: str) -> NamespacedName:
        """Forks a base that the installation offers."""
        return await self._make(
            user, NamespacedName(offer.namespace, _checked(name)), offer.spec.wire()
        )

    async def of_spec(
        self,
        user: User,
        fork: NamespacedName,
        model: Body,
        annotations: Mapping[str, str],
        kinds: Collection[str] = tuple(KINDS),
    ) -> None:
        """Makes a model as it is given; one that exists with these annotations is this one.

        Head and run are deleted with it.

        Raises:
            RefusalError: 409, a model of that name exists without them.
        """
        await self._require(user, fork, kinds)
        key = ObjectKey("TrainableModel", fork.namespace, fork.name)
        existing = await self._get(key)
        known = (existing or {}).get("metadata", {}).get("annotations") or {}
        if existing is not None and not annotations.items() <= known.items():
            raise _exists(fork)
        specs = fork_specs(model, fork.name)
        first = specs.pop("TrainableModel")
        made = existing or await self._create(user, key.kind, fork, first, annotations)
        # None: the same call, sent twice, made it meanwhile.
        made = made or await self._get(key)
        if made is None:
            raise not_ready("NotCreated", f"{key} was deleted while it was made")
        owner = ObjectMeta(name=fork.name, uid=made["metadata"]["uid"])
        for kind, spec in specs.items():
            if kind in kinds:
                await self._create(user, kind, fork, spec, annotations, owner=owner)

    async def _require(self, user: User, fork: NamespacedName, kinds: Collection[str]) -> None:
        """Refuses a caller who may not make a model; or not see it, and would leave it behind."""
        for kind in kinds:
            await self._auth.require(user, "create", KINDS[kind], fork)
        await self._auth.require(user, *SEE, fork)

    async def _make(self, user: User, fork: NamespacedName, model: Body) -> NamespacedName:
        """Returns the fork once the gateway sees it; 409 if a model of that name exists."""
        await self._require(user, fork, KINDS)
        if fork in self._watch.world.models:
            raise _exists(fork)
        for kind, spec in fork_specs(model, fork.name).items():
            created = await self._create(user, kind, fork, spec)
            if created is None and kind == "TrainableModel":
                raise _exists(fork)
        seen = await self._watch.wait_for(
            # Wait for all three, so that the next call finds a run to train.
            lambda world: (
                world.models.get(fork) if fork in world.heads and fork in world.runs else None
            ),
            SEEN_SECONDS,
        )
        if seen is None:
            raise not_ready(
                "NotSeenYet", f"model {fork} is created and its objects are not all seen yet"
            )
        return fork

    async def _create(
        self,
        user: User,
        kind: str,
        fork: NamespacedName,
        spec: Body,
        annotations: Mapping[str, str] = MappingProxyType({}),
        *,
        owner: ObjectMeta | None = None,
    ) -> Body | None:
        """What was created; None if an object of that name, no other model's, exists."""
        metadata: Body = {
            "name": fork.name,
            "namespace": fork.namespace,
            "annotations": {REQUESTED_BY: user.name, **annotations},
        }
        if owner is not None:
            reference = owner_reference("TrainableModel", owner, controller=False)
            metadata["ownerReferences"] = [reference]
        try:
            named = acting_for(self._cluster, user)
            if created := await named.create(kind, {"metadata": metadata, "spec": spec}):
                return created
        except ClusterError as error:
            raise refused(error, user, f"{kind} {fork}", "NotCreated") from error
        # An interrupted fork left this object, or it is someone else's and the name is taken.
        existing = await self._get(ObjectKey(kind, fork.namespace, fork.name))
        owner = (existing or {}).get("spec", {}).get("modelRef", {}).get("name")
        if owner not in (None, fork.name):
            raise RefusalError(
                409,
                "NameTaken",
                f"{kind} {fork} belongs to model {owner}",
                "Choose another name for the fork",
            )
        return None

    async def _get(self, key: ObjectKey) -> Body | None:
        try:
            return await self._cluster.get(key)
        except ClusterError as error:
            raise not_ready("NotCreated", f"{key} was not read: {error.message}") from error


def model_spec(world: ServedWorld, source: NamespacedName) -> Body:
    """The spec of a fork's model: its source's, starting from what the source serves."""
    spec = world.models[source].spec.wire()
    head = world.head_of(source)
    if head is not None and head.status.current is not None and head.status.current.name:
        spec["source"] = {"checkpointRef": {"name": head.status.current.name}}
    return spec


def fork_specs(model: Body, name: str) -> dict[str, Body]:
    """The specs of a fork by kind, in the order of their creation.

    The run leaves loss, learning rate and the rest to the client.
    """
    run: Body = {
        "modelRef": {"name": name},
        "driver": "Client",
        "steps": STEPS,
    }
    return {
        "CheckpointHead": {"modelRef": {"name": name}, "mode": "Track"},
        "TrainingRun": run,
        "TrainableModel": model,
    }


def _checked(name: str) -> str:
    if re.fullmatch(NAME_PATTERN, name) and len(name) <= MAX_NAME_CHARS:
        return name
    proposed = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:MAX_NAME_CHARS].strip("-")
    raise RefusalError(
        422,
        "InvalidName",
        f"name: {name!r} cannot name an object",
        f"Take lower-case letters, digits and '-', at most {MAX_NAME_CHARS}"
        + (f", such as {proposed}" if proposed else ""),
    )


def _exists(fork: NamespacedName) -> RefusalError:
    return RefusalError(
        409, "ModelExists", f"model {fork} exists", "Choose another name, or use it as it is"
    )
