"""``GET /v1/models``: the models that the caller may sample, in OpenAI's form."""

from __future__ import annotations

import asyncio
from datetime import datetime

from aiohttp import web

from espalier.api.trainablemodel import TrainableModel
from espalier.gateway.routing import slug_of
from espalier.gateway.services import Services
from espalier.gateway.snapshot import Id


class Catalogue:
    """Handler of ``/v1/models``."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def list(self, request: web.Request) -> web.Response:
        """Every model of the served namespaces that the caller may get."""
        user = await self._services.caller(request)
        models = sorted(self._services.view.snapshot.models)
        allowed = await asyncio.gather(
            *(self._services.auth.allowed(user, "get", "trainablemodels", m) for m in models)
        )
        seen = [model for model, may in zip(models, allowed, strict=True) if may]
        data = [self._entry(model) for model in seen]
        return web.json_response({"object": "list", "data": data})

    def _entry(self, model: Id) -> dict[str, object]:
        snapshot = self._services.view.snapshot
        return {
            "id": slug_of(snapshot, model),
            "object": "model",
            "created": _seconds(snapshot.models[model]),
            "owned_by": model.namespace,
        }


def _seconds(model: TrainableModel) -> int:
    stamp = model.metadata.creation_timestamp
    return int(datetime.fromisoformat(stamp).timestamp()) if stamp else 0
