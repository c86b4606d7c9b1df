"""What a runner reads of its run."""

from __future__ import annotations

from aiohttp import web

from espalier.gateway.context import Services
from espalier.gateway.problems import RefusalError
from espalier.gateway.world.turn import is_paused, live_term, misaligned
from espalier.gateway.world.world import Id


class Runs:
    """Handler of ``/v1/runs/{namespace}/{name}``."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def get(self, request: web.Request) -> web.Response:
        """What a runner reads at every step: its spec as of now, term, suspended, paused."""
        user = await self._services.caller(request)
        name = Id(request.match_info["namespace"], request.match_info["name"])
        await self._services.auth.require(user, "get", "trainingruns", name)
        snapshot = self._services.view.snapshot
        run = snapshot.runs.get(name)
        if run is None:
            raise RefusalError(
                404,
                "RunNotFound",
                f"no TrainingRun {name} in the served namespaces",
                "kubectl get trun -A lists the runs",
            )
        model = name.beside(run.spec.model_ref.name)
        return web.json_response(
            {
                "uid": run.metadata.uid,
                "model": model.name,
                "spec": run.spec.wire(),
                "term": live_term(snapshot, model),
                "suspended": bool(run.spec.suspend),
                "paused": is_paused(snapshot, model) or bool(misaligned(run)),
            }
        )
