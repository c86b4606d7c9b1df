"""What every handler needs, made once per process."""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp
from aiohttp import web

from espalier.gateway.auth import Authenticator, User
from espalier.gateway.problems import RefusalError
from espalier.gateway.routing import NEAREST, Slug, Unknown, find_model, find_slug
from espalier.gateway.snapshot import Id
from espalier.gateway.tokens import TokenIssuer
from espalier.gateway.view import View
from espalier.kube.cluster import Cluster

UPSTREAM_SECONDS: web.RequestKey[float] = web.RequestKey("upstream_seconds", float)
# HUD's client sends a call once, and a fork's first before its servers are up: it is held for so
# long, because within the 600 s that the client waits in all, the answer needs time too.
HELD_SECONDS = 240.0
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)


@dataclass(frozen=True)
class Services:
    """View of the cluster and the cluster itself, authentication, tokens, connections to pods.

    ``cluster`` is written on behalf of users alone: forks, and moves of heads.
    """

    view: View
    cluster: Cluster
    auth: Authenticator
    tokens: TokenIssuer
    session: aiohttp.ClientSession

    async def caller(self, request: web.Request) -> User:
        """The authenticated caller of a request."""
        return await self.auth.user(request.headers.get("Authorization"))

    async def sampled(self, user: User, slug: str) -> Slug:
        """The model and head that a slug means; 404 with the nearest that the caller may see."""
        found = find_slug(self.view.snapshot, slug)
        if isinstance(found, Unknown):
            raise await self.unknown(user, found)
        return found

    async def model(self, user: User, slug: str) -> Id:
        """The model that a slug means to who trains it; 404 as for ``sampled``."""
        found = find_model(self.view.snapshot, slug)
        if isinstance(found, Unknown):
            raise await self.unknown(user, found)
        return found

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
