"""``GET /v1/models``, all or one: what the caller may sample, in OpenAI's form."""

from __future__ import annotations

import asyncio
from datetime import datetime

from aiohttp import web

from espalier.api.trainablemodel import TrainableModel
from espalier.gateway.access.callers import Callers
from espalier.gateway.world.routing import Slug, Unknown, resolve, slug_of, slugs, split
from espalier.gateway.world.watch import WorldWatch


class OpenAIModelRoutes:
    """Handlers of ``/v1/models``."""

    def __init__(self, callers: Callers, watch: WorldWatch) -> None:
        self._callers = callers
        self._watch = watch

    async def list(self, request: web.Request) -> web.Response:
        """Every model of the served namespaces that the caller may see, and its other heads."""
        user = await self._callers.caller(request, "read", "sample")
        known = slugs(self._watch.world)
        allowed = await asyncio.gather(*(self._callers.may_see(user, one.model) for one in known))
        seen = [slug for slug, may in zip(known, allowed, strict=True) if may]
        there = self._watch.world.models
        data = [self._entry(slug) for slug in seen if slug.model in there]
        return web.json_response({"object": "list", "data": data})

    async def get(self, request: web.Request) -> web.Response:
        """One model or head under the name that the caller uses, ``slug@checkpoint`` too."""
        user = await self._callers.caller(request, "read", "sample")
        parts = request.match_info
        named = "/".join(parts[part] for part in ("namespace", "slug") if part in parts)
        slug, ref = split(named)
        sampled = await self._callers.sampled(user, slug)
        meant = resolve(self._watch.world, sampled.model, ref, sampled.head)
        if ref and isinstance(meant, Unknown):
            raise await self._callers.unknown(user, meant)
        return web.json_response({**self._entry(sampled), "id": named})

    def _entry(self, slug: Slug) -> dict[str, object]:
        world = self._watch.world
        entry: dict[str, object] = {
            "id": slug_of(world, slug.head),
            "object": "model",
            "created": _seconds(world.models[slug.model]),
            "owned_by": slug.model.namespace,
        }
        own = slug.head == slug.model
        return entry if own else {**entry, "parent": slug_of(world, slug.model)}


def _seconds(model: TrainableModel) -> int:
    stamp = model.metadata.creation_timestamp
    return int(datetime.fromisoformat(stamp).timestamp()) if stamp else 0
