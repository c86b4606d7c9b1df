"""The operator put together: a cache feeds a queue, the queue runs reconcilers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from espalier.controllers.context import OperatorContext
from espalier.controllers.observed.blockers import Blockers
from espalier.controllers.observed.head_metrics import HeadMetrics
from espalier.controllers.observed.lister import Lister
from espalier.controllers.observed.object_counts import ObjectCounts
from espalier.controllers.observed.parsing import UnreadableObjectError
from espalier.controllers.observed.queues import Queues
from espalier.controllers.observed.status_writer import StatusWriter
from espalier.controllers.peers.assignments import Assignments
from espalier.controllers.peers.commit_streams import COMMITS, CommitStreams
from espalier.controllers.peers.importer_client import Importer, Imports
from espalier.controllers.peers.sampler_client import RolloutControl
from espalier.controllers.peers.samplers import Rollouts
from espalier.controllers.peers.trainer_client import Trainer
from espalier.controllers.process import wiring
from espalier.controllers.process.refusals import OWN, Refusals, reason_of
from espalier.controllers.process.triggers import concerned
from espalier.core import conditions
from espalier.core.checkpoints.disposal import DISPOSAL
from espalier.core.manifests.installation import ChildSettings
from espalier.kube.cache import Cache, ChangeSource
from espalier.kube.cluster import Cluster, ClusterError
from espalier.kube.events import EventRecorder
from espalier.kube.objects import Body, ObjectKey
from espalier.kube.queue import WorkQueue
from espalier.telemetry import spans

logger = logging.getLogger(__name__)

WORKERS = 8
# The object has changed since the decision: read it and decide again.
OUTDATED = (404, 409)
OUTDATED_SECONDS = 0.02


class Operator:
    """Everything that happens after start-up; ``cache`` must be synced before ``run``."""

    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        trainer: Trainer,
        rollout: RolloutControl,
        settings: ChildSettings,
        *,
        importer: Importer,
        now: Callable[[], str],
        identity: str = "",
    ) -> None:
        self.queue = WorkQueue(self._reconcile, workers=WORKERS)
        self._cache = cache
        self._head_metrics = HeadMetrics()
        counts = ObjectCounts()
        cache.on_change(lambda key, old, new, _: counts.changed(key, old, new))
        self.context = OperatorContext(
            cluster=cluster,
            lister=Lister(cache),
            writer=StatusWriter(cluster, cache, EventRecorder(cluster, identity)),
            rollouts=Rollouts(rollout),
            trainers=Assignments(trainer, self._wake_head),
            streams=CommitStreams(trainer, self._wake_commits),
            blockers=Blockers(cluster),
            queues=Queues(cluster),
            imports=Imports(importer),
            settings=settings,
            now=now,
            enqueue=self.queue.add,
        )
        self.refusals = Refusals(self.context.lister, self.context.writer, now)
        self._reconcilers = wiring.reconcilers(self.context)

    async def run(self, stop: asyncio.Event) -> None:
        """Reconcile everything once, then whatever changes, until ``stop``."""
        for kind in ("CheckpointHead", "TrainableModel", "TrainingRun", "Checkpoint"):
            for key in self._cache.keys(kind):
                self.queue.add(key)
        # A Job without an owner belongs to no object above: look at it by itself.
        for key in self._cache.keys("Job"):
            self._changed(key, None, self._cache.get(key), ChangeSource.SEEN)
        self._cache.on_change(self._changed)
        try:
            await self.queue.run(stop)
        finally:
            await self.context.streams.close()

    async def _reconcile(self, key: ObjectKey) -> float | None:
        with spans.span(f"reconcile {key.kind}", _about(key)):
            return await self._pass(key)

    async def _pass(self, key: ObjectKey) -> float | None:
        try:
            again = await self._reconcilers[key.kind](key)
            self.refusals.ended(key)
            return again
        except ClusterError as error:
            if reason_of(error):
                return await self.refusals.refused(key, error)
            if error.status not in OUTDATED or key.kind in (COMMITS, DISPOSAL):
                raise
            await self.context.writer.refresh(key)
            return OUTDATED_SECONDS
        except UnreadableObjectError as error:
            await self._unreadable(key, error)
            return None

    async def _unreadable(self, key: ObjectKey, error: UnreadableObjectError) -> None:
        """Report the field that is not understood; do nothing until the object changes."""
        body = self._cache.get(key)
        # An unreadable neighbour must not make a Checkpoint unready.
        others = () if error.key == key else ("Checkpoint",)
        if body is None or key.kind not in OWN or key.kind in others:
            return
        where = "" if error.key == key else f"{error.key.kind} {error.key.name}: "
        message = (
            f"{where}{error.field}: {error.problem}. This operator is of an older version than the "
            f"CRDs: upgrade it, or remove the field"
        )
        now = self.context.now()
        if await self.context.writer.stall(key.kind, body, conditions.UNKNOWN_FIELD, message, now):
            logger.warning("%s: %s", key, message, extra=key.fields())
            await self.context.writer.record(
                key.kind, body, "Warning", conditions.UNKNOWN_FIELD, message
            )

    def _changed(
        self, key: ObjectKey, old: Body | None, new: Body | None, source: ChangeSource
    ) -> None:
        if key.kind == "CheckpointHead":
            self._head_metrics.changed(key, old, new)
        if key.kind == "Pod" and new is None:
            self.context.rollouts.forget(key.namespace, key.name)
        # Another pass over a Checkpoint would decide the status that was just written.
        settled = key if key.kind == "Checkpoint" and source is ChangeSource.OWN_STATUS else None
        for other in concerned(self._cache, key, old, new):
            if other.kind in self._reconcilers and other != settled:
                self.queue.add(other)
        if key.kind == "Checkpoint" and new is None and old is not None:
            self._lost(key, old)

    def _lost(self, key: ObjectKey, old: Body) -> None:
        """Recreate from its commit a tip that somebody deleted while its model exists."""
        model, branch = old["spec"]["modelRef"]["name"], old["spec"]["branch"]
        try:
            tip = self.context.lister.lineage(key.namespace, model).tip(branch)
        except UnreadableObjectError:
            # Once it is understood, all commits are read again.
            tip = None
        if tip is None or tip.spec.step < old["spec"]["step"]:
            self.context.streams.rewind(key.namespace, model)

    def _wake_commits(self, namespace: str, model: str) -> None:
        self.queue.add(ObjectKey(COMMITS, namespace, model))

    def _wake_head(self, namespace: str, model: str) -> None:
        self.queue.add(ObjectKey("CheckpointHead", namespace, model))


def _about(key: ObjectKey) -> dict[str, str]:
    return {spans.NAMESPACE: key.namespace, "espalier.kind": key.kind, "espalier.name": key.name}
