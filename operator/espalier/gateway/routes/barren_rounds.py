"""Records rounds of sampling that brought no step, so that the run says so while it goes on."""

from __future__ import annotations

from aiohttp import web

from espalier.api.wire.barren_rounds import BarrenRounds
from espalier.gateway.access.auth import Authenticator
from espalier.gateway.access.callers import Callers
from espalier.gateway.access.request_body import read_body
from espalier.gateway.context import STATUS_MANAGER
from espalier.gateway.problems import not_ready
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName
from espalier.kube.cluster import Cluster, ClusterError

# Not the manager of a run's other fields: what a manager applies is all that it wants to own.
MANAGER = f"{STATUS_MANAGER}-barren-rounds"


class BarrenRoundRoutes:
    """Handler of ``/v1/runs/{namespace}/{name}/barren-rounds``."""

    def __init__(
        self, callers: Callers, watch: WorldWatch, auth: Authenticator, cluster: Cluster
    ) -> None:
        self._callers = callers
        self._watch = watch
        self._auth = auth
        self._cluster = cluster

    async def put(self, request: web.Request) -> web.Response:
        """Writes ``status.barrenRounds`` of the run, which whoever drives it may do."""
        user = await self._callers.caller(request)
        name = NamespacedName(request.match_info["namespace"], request.match_info["name"])
        await self._auth.require(user, "update", "trainingruns", name)
        given = await read_body(request, BarrenRounds)
        run = self._watch.world.runs[name]
        metadata = {"name": name.name, "namespace": name.namespace, "uid": run.metadata.uid}
        body = {"metadata": metadata, "status": {"barrenRounds": given.model_dump()}}
        try:
            await self._cluster.apply_status("TrainingRun", body, manager=MANAGER)
        except ClusterError as error:
            raise not_ready(
                "RoundsNotRecorded", f"the rounds of {name} were not recorded: {error.message}"
            ) from error
        return web.json_response({"run": name.name})
