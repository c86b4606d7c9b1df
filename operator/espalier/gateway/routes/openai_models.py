"""``GET /v1/models``, all or one: what the caller may sample, in OpenAI's form."""

from __future__ import annotations

import asyncio
from datetime import datetime

from aiohttp import web

from espalier.api.trainablemodel import TrainableModel
from espalier.gateway.context import Services
from espalier.gateway.world.routing import Slug, Unknown, resolve, slug_of, slugs, split


class Catalogue:
    """Handlers of ``/v1/models``."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def list(self, request: web.Request) -> web.Response:
        """Every model of the served namespaces that the caller may get, and its other heads."""
        user = await self._services.caller(request)
        known = slugs(self._services.view.snapshot)
        allowed = await asyncio.gather(
            *(self._services.auth.allowed(user, "get", "trainablemodels", s.model) for s in known)
        )
        seen = [slug for slug, may in zip(known, allowed, strict=True) if may]
        data = [self._entry(slug) for slug in seen]
        return web.json_response({"object": "list", "data": data})

    async def get(self, request: web.Request) -> web.Response:
        """One model or head under the name that the caller uses, ``slug@checkpoint`` too."""
        user = await self._services.caller(request)
        parts = request.match_info
        named = "/".join(parts[part] for part in ("namespace", "slug") if part in parts)
        slug, ref = split(named)
        found = await self._services.sampled(user, slug)
        await self._services.auth.require(user, "get", "trainablemodels", found.model)
        meant = resolve(self._services.view.snapshot, found.model, ref, found.head)
        if ref and isinstance(meant, Unknown):
            raise await self._services.unknown(user, meant)
        return web.json_response({**self._entry(found), "id": named})

    def _entry(self, slug: Slug) -> dict[str, object]:
        snapshot = self._services.view.snapshot
        entry: dict[str, object] = {
            "id": slug_of(snapshot, slug.head),
            "object": "model",
            "created": _seconds(snapshot.models[slug.model]),
            "owned_by": slug.model.namespace,
        }
        own = slug.head == slug.model
        return entry if own else {**entry, "parent": slug_of(snapshot, slug.model)}


def _seconds(model: TrainableModel) -> int:
    stamp = model.metadata.creation_timestamp
    return int(datetime.fromisoformat(stamp).timestamp()) if stamp else 0
