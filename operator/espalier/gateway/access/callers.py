"""Who calls, and which model a name means to them."""

from __future__ import annotations

import asyncio

from aiohttp import hdrs, web

from espalier.core.api_keys import Scope
from espalier.gateway.access.audit import CALLER
from espalier.gateway.access.auth import Authenticator, User, remedy
from espalier.gateway.access.offers import Offers
from espalier.gateway.access.remembered import Remembered
from espalier.gateway.access.request_limits import API_KEY, HELD, MOST_OF_ONE
from espalier.gateway.access.rights import SAMPLE, SEE
from espalier.gateway.problems import RefusalError
from espalier.gateway.world.routing import (
    NEAREST,
    Slug,
    Unknown,
    find_slug,
    meanings,
    model_of,
    one_of,
)
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName

# Verb and resource.
Right = tuple[str, str]
# A watch shows what was made after so long at the most.
SEEN_SECONDS = 5.0


class Callers:
    """Authenticates callers and finds the models that they name.

    Args:
        watch: the cluster as it is now.
        auth: asks the API server.
        offers: bases that can be forked, for the remedy of a name that is one.
    """

    def __init__(self, watch: WorldWatch, auth: Authenticator, offers: Offers) -> None:
        self._watch = watch
        self._auth = auth
        self._offers = offers
        self._any: Remembered[bool] = Remembered()

    async def caller(self, request: web.Request, *any_of: Scope) -> User:
        """The authenticated caller of a request that takes one of these scopes.

        Scopes limit API keys; without any, a limited key is refused.
        """
        headers = request.headers
        user = await self._auth.user(headers.get(hdrs.AUTHORIZATION), headers.get(API_KEY))
        request[CALLER] = user
        request[HELD].owned_by(user.name, request[MOST_OF_ONE])
        user.require_scope(*any_of)
        return user

    async def require_some_model(self, user: User, right: Right = SAMPLE) -> None:
        """Refuses a caller with a right to no model, before the body that names it is read."""
        if not self._served():
            raise RefusalError(
                404, "ModelNotFound", "no model is served", "Create a TrainableModel"
            )
        if not await self.has_right_to_some(user, right):
            verb, resource = right
            raise RefusalError(
                403,
                "Forbidden",
                f"{user.name} may not {verb} {resource} of any served model",
                remedy(verb, resource),
            )

    async def require_one_if_any(self, user: User) -> None:
        """Refuses a caller who may sample none of the models that there are."""
        if self._served():
            await self.require_some_model(user)

    async def has_right_to_some(self, user: User, right: Right) -> bool:
        """Whether a caller has a right to any of the models that there are."""
        return await self._any.get((user, right), lambda: self._has_any(user, right))

    async def _has_any(self, user: User, right: Right) -> bool:
        asked = (self._auth.allowed(user, *right, model) for model in self._served())
        return any(await asyncio.gather(*asked))

    def _served(self) -> list[NamespacedName]:
        world = self._watch.world
        return [model for model in world.models if model.namespace in world.namespaces]

    async def may_see(self, user: User, model: NamespacedName) -> bool:
        """Whether a caller may know of a model: it may get or sample it."""
        return await self._auth.allowed(user, *SEE, model) or await self._auth.allowed(
            user, *SAMPLE, model
        )

    async def sampled(self, user: User, slug: str) -> Slug:
        """The model and head that a slug means; 404 with the nearest that the caller may see.

        What it may not see is not there for it: it makes no bare name ambiguous either.
        """
        world = self._watch.world
        meant = [one for one in meanings(world, slug) if await self.may_see(user, one.model)]
        found = one_of(world, slug, meant)
        if isinstance(found, Unknown):
            raise await self._unforked(user, slug) or await self.unknown(user, found)
        return found

    async def model(self, user: User, slug: str) -> NamespacedName:
        """The model that a slug means in a training request; 404 as for ``sampled``."""
        found = model_of(self._watch.world, slug, await self.sampled(user, slug))
        if isinstance(found, Unknown):
            raise await self.unknown(user, found)
        return found

    async def _unforked(self, user: User, slug: str) -> RefusalError | None:
        """404 for a base that the caller could fork."""
        offer = self._offers.find(slug)
        if offer is None or offer not in await self._offers.of(self._auth, user):
            return None
        return RefusalError(
            404,
            "ModelNotFound",
            f"{offer.name} is a base, and only its forks are sampled and trained",
            f"Fork it, and use the fork: hud models fork {offer.name} --name NAME",
        )

    async def unknown(self, user: User, unknown: Unknown) -> RefusalError:
        """404 ``ModelNotFound``, naming only what the caller may get."""
        seen = [name for name in unknown.nearest[:NEAREST] if await self._names_seen(user, name)]
        remedy = f"Did you mean: {', '.join(seen)}" if seen else "GET /v1/models lists the models"
        return RefusalError(404, "ModelNotFound", unknown.detail, remedy)

    async def _names_seen(self, user: User, name: str) -> bool:
        slug = find_slug(self._watch.world, name.partition("@")[0])
        return isinstance(slug, Slug) and await self.may_see(user, slug.model)
