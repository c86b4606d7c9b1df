"""Records what an evaluation found of a checkpoint, or of the base that a run starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from espalier.api.checkpoint import Checkpoint
from espalier.api.evaluated import EVALUATIONS_MOST, EvaluationResult
from espalier.api.meta import decimal_string
from espalier.api.trainingrun import TrainingRun
from espalier.api.wire.evaluation import EvaluationRequest
from espalier.gateway.access.audit import ACT, audited
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

# Not the manager of a run's other field that the gateway writes: what a manager applies is all that
# it wants to own.
BASE_MANAGER = f"{STATUS_MANAGER}-evaluations"


class EvaluationRoutes:
    """Handler of ``/v1/checkpoints/{namespace}/{name}/evaluations``, and of the same of a run."""

    def __init__(
        self, callers: Callers, watch: WorldWatch, auth: Authenticator, cluster: Cluster
    ) -> None:
        self._callers = callers
        self._watch = watch
        self._auth = auth
        self._cluster = cluster

    @audited("Evaluate")
    async def post(self, request: web.Request) -> web.Response:
        """Writes ``status.evaluations`` of the Checkpoint, from which its metrics follow."""
        user = await self._callers.caller(request, "promote")
        name = NamespacedName(request.match_info["namespace"], request.match_info["name"])
        request[ACT].of("Checkpoint", name)
        await self._auth.require(user, "evaluate", "checkpoints", name)
        given = await read_body(request, EvaluationRequest)
        request[ACT].after = given.name
        await self._record("Checkpoint", name, given)
        return web.json_response({"checkpoint": name.name, "name": given.name})

    @audited("Evaluate")
    async def post_base(self, request: web.Request) -> web.Response:
        """Writes ``status.baseEvaluations`` of the run, which whoever drives it may do."""
        user = await self._callers.caller(request)
        name = NamespacedName(request.match_info["namespace"], request.match_info["name"])
        request[ACT].of("TrainingRun", name)
        await self._auth.require(user, "update", "trainingruns", name)
        given = await read_body(request, EvaluationRequest)
        request[ACT].after = given.name
        await self._record("TrainingRun", name, given)
        return web.json_response({"run": name.name, "name": given.name})

    async def _record(self, kind: str, name: NamespacedName, given: EvaluationRequest) -> None:
        try:
            # The operator writes the status in between.
            await despite_contention(lambda: self._write(kind, name, given))
        except ClusterError as error:
            raise not_ready(
                "EvaluationNotRecorded",
                f"the evaluation of {name} was not recorded: {error.message}",
            ) from error

    async def _write(self, kind: str, name: NamespacedName, given: EvaluationRequest) -> None:
        body = None
        if name.namespace in self._watch.world.namespaces:
            body = await self._cluster.get(ObjectKey(kind, name.namespace, name.name))
        if body is None:
            short = {"Checkpoint": "ckpt", "TrainingRun": "trun"}[kind]
            raise RefusalError(
                404,
                f"{kind.removeprefix('Training')}NotFound",
                f"no {kind} {name} in the served namespaces",
                f"kubectl get {short} -A lists them",
            )
        if kind == "Checkpoint":
            field, manager = "evaluations", STATUS_MANAGER
            before = Checkpoint.model_validate(body).status.evaluations
        else:
            field, manager = "baseEvaluations", BASE_MANAGER
            before = TrainingRun.model_validate(body).status.base_evaluations
        seen = {n: body["metadata"][n] for n in ("name", "namespace", "uid", "resourceVersion")}
        status = {field: _with(before, given, f"{kind} {name}")}
        await self._cluster.apply_status(
            kind, {"metadata": seen, "status": status}, manager=manager
        )


def _with(
    before: Sequence[EvaluationResult], given: EvaluationRequest, whose: str
) -> list[dict[str, Any]]:
    """The evaluations with one more, which takes the place of an earlier one of its name."""
    others = [one.wire() for one in before if one.name != given.name]
    if len(others) >= EVALUATIONS_MOST:
        raise RefusalError(
            409,
            "TooManyEvaluations",
            f"{whose} has {len(others)} evaluations already, the most there can be",
            f"Use one of their names: {', '.join(one.name for one in before)}",
        )
    figures = [
        {"name": f"eval/{given.name}/{metric}", "value": decimal_string(value)}
        for metric, value in sorted(given.metrics.items())
    ]
    mine = {"name": given.name, "tasks": given.tasks, "metrics": figures}
    return sorted([*others, mine], key=lambda one: str(one["name"]))
