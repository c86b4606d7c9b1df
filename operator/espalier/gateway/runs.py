"""Which run trains a model now, and what a runner reads of its run."""

from __future__ import annotations

from aiohttp import web

from espalier.api.trainingrun import TrainingRun
from espalier.core.request import paused
from espalier.core.turn import active
from espalier.gateway.problems import RefusalError
from espalier.gateway.services import Services
from espalier.gateway.snapshot import Id, Snapshot


def active_run(snapshot: Snapshot, model: Id) -> TrainingRun | None:
    """The run whose turn it is on the model."""
    return active(snapshot.runs_of(model))


def is_paused(snapshot: Snapshot, model: Id) -> bool:
    """True while a pin of the model's head, once the operator has agreed to it, holds training."""
    head = snapshot.head_of(model)
    return head is not None and paused(head)


def live_epoch(snapshot: Snapshot, model: Id) -> int:
    """The epoch that the model trains under; 0 before its head has one."""
    head = snapshot.head_of(model)
    return head.status.epoch if head is not None else 0


class Runs:
    """Handler of ``/v1/runs/{namespace}/{name}``."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def get(self, request: web.Request) -> web.Response:
        """What a runner reads at every step: its spec as of now, epoch, suspended, paused."""
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
                "epoch": live_epoch(snapshot, model),
                "suspended": bool(run.spec.suspend),
                "paused": is_paused(snapshot, model),
            }
        )
