"""The run as its runner reads it."""

from __future__ import annotations

from aiohttp import web

from espalier.core.run.continued import counted_as
from espalier.core.run.turn import over
from espalier.gateway.access.auth import Authenticator
from espalier.gateway.access.callers import Callers
from espalier.gateway.world.turn import is_paused, live_term, misaligned
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName


class RunRoutes:
    """Handler of ``/v1/runs/{namespace}/{name}``."""

    def __init__(self, callers: Callers, watch: WorldWatch, auth: Authenticator) -> None:
        self._callers = callers
        self._watch = watch
        self._auth = auth

    async def get(self, request: web.Request) -> web.Response:
        """The run's present spec, its term, and whether it is suspended, paused or over."""
        user = await self._callers.caller(request, "read", "train")
        name = NamespacedName(request.match_info["namespace"], request.match_info["name"])
        await self._auth.require(user, "get", "trainingruns", name)
        world = self._watch.world
        run = world.runs[name]
        model = name.beside(run.spec.model_ref.name)
        return web.json_response(
            {
                "uid": counted_as(run),
                "model": model.name,
                "spec": run.spec.wire(),
                "term": live_term(world, model),
                "suspended": bool(run.spec.suspend),
                "paused": is_paused(world, model) or bool(misaligned(run)),
                "over": over(run),
            }
        )
