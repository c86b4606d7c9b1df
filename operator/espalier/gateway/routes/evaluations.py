"""Records what an evaluation found of a checkpoint."""

from __future__ import annotations

from aiohttp import web

from espalier.api.checkpoint import EVALUATIONS_MOST, Checkpoint
from espalier.api.meta import decimal_string
from espalier.api.wire import EvaluationRequest
from espalier.gateway.access.auth import Authenticator
from espalier.gateway.access.callers import Callers
from espalier.gateway.access.request_body import read_body
from espalier.gateway.context import STATUS_MANAGER
from espalier.gateway.problems import RefusalError, not_ready
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName
from espalier.kube.cluster import Cluster, ClusterError
from espalier.kube.contention import despite_contention
from espalier.kube.objects import ObjectKey


class EvaluationRoutes:
    """Handler of ``/v1/checkpoints/{namespace}/{name}/evaluations``."""

    def __init__(
        self, callers: Callers, watch: WorldWatch, auth: Authenticator, cluster: Cluster
    ) -> None:
        self._callers = callers
        self._watch = watch
        self._auth = auth
        self._cluster = cluster

    async def post(self, request: web.Request) -> web.Response:
        """Writes ``status.evaluations`` of the Checkpoint, from which its metrics follow."""
        user = await self._callers.caller(request, "promote")
        name = NamespacedName(request.match_info["namespace"], request.match_info["name"])
        await self._auth.require(user, "evaluate", "checkpoints", name)
        given = await read_body(request, EvaluationRequest)
        try:
            # The operator writes the status in between.
            await despite_contention(lambda: self._write(name, given))
        except ClusterError as error:
            raise not_ready(
                "EvaluationNotRecorded",
                f"the evaluation of {name} was not recorded: {error.message}",
            ) from error
        return web.json_response({"checkpoint": name.name, "name": given.name})

    async def _write(self, name: NamespacedName, given: EvaluationRequest) -> None:
        body = None
        if name.namespace in self._watch.world.namespaces:
            body = await self._cluster.get(ObjectKey("Checkpoint", name.namespace, name.name))
        if body is None:
            raise RefusalError(
                404,
                "CheckpointNotFound",
                f"no Checkpoint {name} in the served namespaces",
                "kubectl get ckpt -A lists the checkpoints",
            )
        before = Checkpoint.model_validate(body).status.evaluations
        others = [one.wire() for one in before if one.name != given.name]
        if len(others) >= EVALUATIONS_MOST:
            raise RefusalError(
                409,
                "TooManyEvaluations",
                f"Checkpoint {name} has {len(others)} evaluations already, the most there can be",
                f"Use one of their names: {', '.join(one.name for one in before)}",
            )
        figures = [
            {"name": f"eval/{given.name}/{metric}", "value": decimal_string(value)}
            for metric, value in sorted(given.metrics.items())
        ]
        mine = {"name": given.name, "tasks": given.tasks, "metrics": figures}
        seen = {n: body["metadata"][n] for n in ("name", "namespace", "uid", "resourceVersion")}
        status = {"evaluations": sorted([*others, mine], key=lambda one: str(one["name"]))}
        await self._cluster.apply_status(
            "Checkpoint", {"metadata": seen, "status": status}, manager=STATUS_MANAGER
        )
