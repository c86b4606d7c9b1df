"""Finds what a completion asks for, and waits for it where it is about to appear."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.access.callers import Callers
from espalier.gateway.access.rights import SAMPLE
from espalier.gateway.context import HELD_SECONDS
from espalier.gateway.problems import not_ready
from espalier.gateway.world.routing import (
    NotReady,
    Slug,
    Target,
    Unknown,
    could_be_committed,
    resolve,
    split,
)
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName, ServedWorld

# A checkpoint's commit is acknowledged before its object reaches the cache.
CHECKPOINT_WAIT_SECONDS = 10.0


@dataclass(frozen=True)
class Targets:
    """From names in requests to pods, for those who may sample them."""

    callers: Callers
    watch: WorldWatch
    auth: Authenticator

    async def locate(self, user: User, asked: str, *, wait: bool) -> tuple[Slug, str, Target]:
        """What is asked for, and what that means now; ``wait``: until it is served."""
        named, ref = split(asked)
        slug = await self.callers.sampled(user, named)
        model = slug.model
        await self.auth.require(user, *SAMPLE, model)
        meant = resolve(self.watch.world, model, ref, slug.head)
        if isinstance(meant, Unknown):
            meant = await self._wait_for_checkpoint(model, ref) or meant
        if isinstance(meant, NotReady) and wait:
            meant = await self._wait_until_served(slug, ref) or meant
        if isinstance(meant, Unknown):
            raise await self.callers.unknown(user, meant)
        if isinstance(meant, NotReady):
            raise not_ready(meant.reason, meant.message, meant.remedy, from_pod=True)
        return slug, ref, meant

    async def _wait_for_checkpoint(
        self, model: NamespacedName, ref: str
    ) -> Target | NotReady | Unknown | None:
        view = self.watch
        if not could_be_committed(view.world, model, ref):
            return None

        def known(world: ServedWorld) -> Target | NotReady | Unknown | None:
            if model not in world.models:
                return Unknown(f"model {model} was deleted")
            meant = resolve(world, model, ref)
            return None if isinstance(meant, Unknown) else meant

        return await view.wait_for(known, CHECKPOINT_WAIT_SECONDS)

    async def _wait_until_served(self, slug: Slug, ref: str) -> Target | NotReady | Unknown | None:
        def settled(world: ServedWorld) -> Target | NotReady | Unknown | None:
            if slug.model not in world.models:
                return Unknown(f"model {slug.model} was deleted")
            meant = resolve(world, slug.model, ref, slug.head)
            return None if isinstance(meant, NotReady) and meant.passing else meant

        return await self.watch.wait_for(settled, HELD_SECONDS)
