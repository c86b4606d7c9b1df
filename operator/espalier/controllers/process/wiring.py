"""Hands each reconciler the parts of the context that it uses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from espalier.controllers.context import OperatorContext
from espalier.controllers.observed.needed_objects import NeededObjects
from espalier.controllers.peers.commit_streams import COMMITS
from espalier.controllers.reconcilers.checkpoint import CheckpointReconciler
from espalier.controllers.reconcilers.commit import CommitReconciler
from espalier.controllers.reconcilers.disposal import DisposalReconciler
from espalier.controllers.reconcilers.head import HeadReconciler
from espalier.controllers.reconcilers.model import ModelReconciler
from espalier.controllers.reconcilers.run import RunReconciler
from espalier.controllers.reconcilers.scrub import Scrubs
from espalier.controllers.reconcilers.servers import Servers
from espalier.core.checkpoints.disposal import DISPOSAL
from espalier.kube.objects import ObjectKey

Reconcile = Callable[[ObjectKey], Awaitable[float | None]]


def reconcilers(context: OperatorContext) -> dict[str, Reconcile]:
    """The pass over an object, by the kind of its key."""
    return {
        "TrainableModel": _model(context).reconcile,
        "TrainingRun": _run(context).reconcile,
        "CheckpointHead": _head(context).reconcile,
        "Checkpoint": _checkpoint(context).reconcile,
        COMMITS: _commit(context).reconcile,
        DISPOSAL: _disposal(context).reconcile,
    }


def _model(context: OperatorContext) -> ModelReconciler:
    return ModelReconciler(
        cluster=context.cluster,
        lister=context.lister,
        writer=context.writer,
        trainers=context.trainers,
        streams=context.streams,
        blockers=context.blockers,
        queues=context.queues,
        imports=context.imports,
        settings=context.settings,
        servers=Servers(cluster=context.cluster, lister=context.lister, settings=context.settings),
        scrubs=_scrubs(context),
        now=context.now,
    )


def _scrubs(context: OperatorContext) -> Scrubs:
    return Scrubs(
        cluster=context.cluster,
        lister=context.lister,
        settings=context.settings,
        enqueue=context.enqueue,
    )


def _run(context: OperatorContext) -> RunReconciler:
    return RunReconciler(
        cluster=context.cluster,
        needed=NeededObjects(context.cluster, context.lister),
        lister=context.lister,
        writer=context.writer,
        trainers=context.trainers,
        streams=context.streams,
        blockers=context.blockers,
        queues=context.queues,
        settings=context.settings,
        now=context.now,
        enqueue=context.enqueue,
    )


def _head(context: OperatorContext) -> HeadReconciler:
    return HeadReconciler(
        cluster=context.cluster,
        lister=context.lister,
        writer=context.writer,
        rollouts=context.rollouts,
        trainers=context.trainers,
        blockers=context.blockers,
        queues=context.queues,
        gateway_url=context.settings.gateway_url,
        now=context.now,
        enqueue=context.enqueue,
    )


def _checkpoint(context: OperatorContext) -> CheckpointReconciler:
    return CheckpointReconciler(
        cluster=context.cluster,
        lister=context.lister,
        writer=context.writer,
        rollouts=context.rollouts,
        trainers=context.trainers,
        scrubs=_scrubs(context),
        now=context.now,
        enqueue=context.enqueue,
    )


def _commit(context: OperatorContext) -> CommitReconciler:
    return CommitReconciler(
        cluster=context.cluster,
        lister=context.lister,
        writer=context.writer,
        streams=context.streams,
        enqueue=context.enqueue,
    )


def _disposal(context: OperatorContext) -> DisposalReconciler:
    return DisposalReconciler(
        cluster=context.cluster,
        lister=context.lister,
        writer=context.writer,
        settings=context.settings,
        now=context.now,
    )
