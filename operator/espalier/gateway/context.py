"""What every handler needs, made once per process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from espalier.api.meta import GROUP
from espalier.gateway.access.auth import Authenticator, Remembered, User
from espalier.gateway.access.byte_budget import Rooms
from espalier.gateway.access.offers import Offers
from espalier.gateway.access.pod_tokens import TokenIssuer
from espalier.gateway.problems import RefusalError
from espalier.gateway.world.routing import NEAREST, Slug, Unknown, find_model, find_slug
from espalier.gateway.world.watch import View
from espalier.gateway.world.world import Id
from espalier.kube.cluster import Cluster

UPSTREAM_SECONDS: web.RequestKey[float] = web.RequestKey("upstream_seconds", float)
# HUD's client sends a call once, and a fork's first before its servers are up: it is held for so
# long, because within the 600 s that the client waits in all, the answer needs time too.
HELD_SECONDS = 240.0
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)


@dataclass(frozen=True)
class Services:
    """View of the cluster and the cluster itself, authentication, tokens, connections to pods.

    ``cluster`` is written on behalf of users alone: forks, moves of heads, and which freed trainer
    a call waits for. ``session`` is of ``pod_session``; ``rooms`` bound what all requests hold
    together; ``offers`` has the bases that may be forked.
    """

    view: View
    cluster: Cluster
    auth: Authenticator
    tokens: TokenIssuer
    session: aiohttp.ClientSession
    offers: Offers = field(default_factory=Offers)
    rooms: Rooms = field(default_factory=Rooms.of_container)
    _sampling: Remembered[bool] = field(default_factory=Remembered)

    async def caller(self, request: web.Request) -> User:
        """The authenticated caller of a request."""
        return await self.auth.user(request.headers.get("Authorization"))

    async def require_some_model(self, user: User) -> None:
        """Refuses who may sample nothing: asked before a body that names the model is read."""
        if not self._served():
            raise RefusalError(
                404, "ModelNotFound", "no model is served", "Create a TrainableModel"
            )
        if not await self._sampling.get(user, lambda: self._may_sample(user)):
            raise RefusalError(
                403,
                "Forbidden",
                f"{user.name} may get none of the served models",
                f"Grant verb get on trainablemodels of {GROUP} by a Role and a RoleBinding",
            )

    async def _may_sample(self, user: User) -> bool:
        asked = (self.auth.allowed(user, "get", "trainablemodels", m) for m in self._served())
        return any(await asyncio.gather(*asked))

    def _served(self) -> list[Id]:
        snapshot = self.view.snapshot
        return [model for model in snapshot.models if model.namespace in snapshot.namespaces]

    async def sampled(self, user: User, slug: str) -> Slug:
        """The model and head that a slug means; 404 with the nearest that the caller may see."""
        found = find_slug(self.view.snapshot, slug)
        if isinstance(found, Unknown):
            raise await self._unforked(user, slug) or await self.unknown(user, found)
        return found

    async def model(self, user: User, slug: str) -> Id:
        """The model that a slug means to who trains it; 404 as for ``sampled``."""
        found = find_model(self.view.snapshot, slug)
        if isinstance(found, Unknown):
            raise await self._unforked(user, slug) or await self.unknown(user, found)
        return found

    async def _unforked(self, user: User, slug: str) -> RefusalError | None:
        """404 for a base that the caller could fork."""
        offer = self.offers.find(slug)
        if offer is None or offer not in await self.offers.of(self.auth, user):
            return None
        return RefusalError(
            404,
            "ModelNotFound",
            f"{offer.name} is a base, and only its forks are sampled and trained",
            f"Fork it, and use the fork: hud models fork {offer.name} --name NAME",
        )

    async def unknown(self, user: User, unknown: Unknown) -> RefusalError:
        """404 ``ModelNotFound``, naming only what the caller may get."""
        seen = [name for name in unknown.nearest[:NEAREST] if await self._may_see(user, name)]
        remedy = f"Did you mean: {', '.join(seen)}" if seen else "GET /v1/models lists the models"
        return RefusalError(404, "ModelNotFound", unknown.detail, remedy)

    async def _may_see(self, user: User, name: str) -> bool:
        slug = find_slug(self.view.snapshot, name.partition("@")[0])
        return isinstance(slug, Slug) and await self.auth.allowed(
            user, "get", "trainablemodels", slug.model
        )


def requested_slug(request: web.Request) -> str:
    """The slug that a route names, with its namespace where the route has one."""
    match = request.match_info
    return f"{match['namespace']}/{match['slug']}" if "namespace" in match else match["slug"]
