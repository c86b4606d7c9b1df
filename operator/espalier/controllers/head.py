"""Reconciles a CheckpointHead: acknowledge, have it served, read back, then call it current."""

from __future__ import annotations

from espalier.api.checkpointhead import CheckpointHead, CheckpointHeadStatus
from espalier.controllers.services import Services
from espalier.core import conditions, pods, request
from espalier.core.head import HeadDecision, HeadView, decide
from espalier.core.names import adapter_name
from espalier.kube.objects import Key

RETRY_SECONDS = 1.0


class HeadReconciler:
    """Observes a head, its model's checkpoints and rollouts; writes the head's status alone."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def reconcile(self, key: Key) -> float | None:
        """One pass over a head; seconds until it should be looked at again."""
        head = self._services.snapshot.head(key.namespace, key.name)
        if head is None or head.metadata.deletion_timestamp is not None:
            return None
        before = head.status
        decision = decide(self._view(head), self._services.now())
        if _commits(decision.status) != _commits(before):
            head = await self._write(key, head, decision)
        if decision.adapter is not None:
            await self._serve(head, decision.adapter)
        decision = decide(self._view(head), self._services.now())
        await self._write(key, head, decision)
        await self._tell(key, before, decision)
        failed = any(rollout.problem for rollout in self._view(head).rollouts)
        return RETRY_SECONDS if failed else None

    def _view(self, head: CheckpointHead) -> HeadView:
        namespace, model = head.metadata.namespace, head.spec.model_ref.name
        leader = self._services.snapshot.leader(namespace, model)
        found = pods.live(self._services.snapshot.pods(namespace, "rollout", model=model))
        ref = head.spec.checkpoint_ref
        return HeadView(
            head=head,
            model=self._services.snapshot.model(namespace, model),
            lineage=self._services.snapshot.lineage(namespace, model),
            named=self._services.snapshot.checkpoint(namespace, ref.name)
            if ref is not None
            else None,
            leader=None if request.leads(head) else leader,
            rollouts=self._services.rollouts.seen(namespace, found),
            trainer_epoch=self._services.trainers.epoch(namespace, model),
            waiting=pods.waiting(found),
        )

    async def _write(
        self, key: Key, head: CheckpointHead, decision: HeadDecision
    ) -> CheckpointHead:
        """Write the status onto the version that was decided on; the head as it is then."""
        body = self._services.snapshot.cache.get(key)
        if body is None or body["metadata"].get("uid") != head.metadata.uid:
            return head
        pinned = {"uid": head.metadata.uid, "resourceVersion": head.metadata.resource_version}
        body = {**body, "metadata": {**body["metadata"], **pinned}}
        await self._services.writer.write("CheckpointHead", body, decision.status)
        return self._services.snapshot.head(key.namespace, key.name) or head

    async def _serve(self, head: CheckpointHead, adapter: str) -> None:
        """Rollouts serve all heads of their model side by side."""
        namespace, model = head.metadata.namespace, head.spec.model_ref.name
        adapters = {adapter}
        for other in self._services.snapshot.heads(namespace, model):
            if other.metadata.name != head.metadata.name and other.status.current is not None:
                adapters.add(adapter_name(model, other.status.current.digest))
        found = pods.live(self._services.snapshot.pods(namespace, "rollout", model=model))
        await self._services.rollouts.serve(namespace, model, found, adapters)

    async def _tell(self, key: Key, before: CheckpointHeadStatus, decision: HeadDecision) -> None:
        """Events of moves that an edit caused, and of pins that cannot be met."""
        body = self._services.snapshot.cache.get(key)
        if body is None:
            return
        moved, status = decision.moved, decision.status
        if moved is not None and moved.reason != "Advanced":
            text = f"serves {moved.name or 'the base'} since epoch {moved.epoch}"
            await self._services.writer.record("CheckpointHead", body, "Normal", moved.reason, text)
        if conditions.is_true(status.conditions, conditions.STALLED):
            await self._services.writer.announce(
                "CheckpointHead", body, before.conditions, status.conditions
            )


def _commits(status: CheckpointHeadStatus) -> tuple[object, ...]:
    """What must be on record before anything is done about it."""
    return (status.target, status.epoch, status.branch, status.branch_base, status.epoch_cause)
