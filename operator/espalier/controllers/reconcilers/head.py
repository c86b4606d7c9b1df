"""Reconciles a CheckpointHead: acknowledge, have it served, read back, then call it current."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from espalier.api.checkpointhead import CheckpointHead, CheckpointHeadStatus
from espalier.controllers.observed.blockers import Blockers
from espalier.controllers.observed.lister import Lister
from espalier.controllers.observed.queues import Queues
from espalier.controllers.observed.status_writer import StatusWriter
from espalier.controllers.peers.assignments import Assignments
from espalier.controllers.peers.samplers import Rollouts
from espalier.core import conditions
from espalier.core.head import head_request
from espalier.core.head.editor import edited_by, editor
from espalier.core.head.head import ADVANCED, HeadDecision, decide
from espalier.core.head.head_view import HeadView
from espalier.core.names import rollout_name
from espalier.core.pods import pods
from espalier.core.pods.blockers import uncreated
from espalier.core.pods.pods import Pod
from espalier.kube.cluster import Cluster
from espalier.kube.objects import Body, ObjectKey


@dataclass(frozen=True, kw_only=True)
class HeadReconciler:
    """Observes a head, its model's checkpoints and rollouts; writes the head's status alone."""

    cluster: Cluster
    lister: Lister
    writer: StatusWriter
    rollouts: Rollouts
    trainers: Assignments
    blockers: Blockers
    queues: Queues
    gateway_url: str
    now: Callable[[], str]
    enqueue: Callable[[ObjectKey], None]

    async def reconcile(self, key: ObjectKey) -> float | None:
        """One pass over a head; seconds until it should be looked at again."""
        head, body = self.lister.head(key.namespace, key.name), self.lister.body(key)
        if head is None or body is None or head.metadata.deletion_timestamp is not None:
            return None
        found = self._pods(head)
        view = self._view(head, found)
        decision = await self._signed(key, decide(view, self.now()))
        # What the rollouts are asked for must be on record before they are asked.
        acknowledges = _commitments(decision.status) != _commitments(head.status)
        if acknowledges:
            await self._write(body, head, decision)
        again = await self._load(head, found, decision)
        self._report(key.namespace, decision.status)
        if self.rollouts.seen(key.namespace, found) != view.rollouts:
            # The next pass decides on what they answered.
            return 0.0
        if not acknowledges:
            await self._write(body, head, decision)
        return again

    async def _signed(self, key: ObjectKey, decision: HeadDecision) -> HeadDecision:
        """The decision with who asked for its move, of whom the cache knows nothing.

        If the head was edited meanwhile, its status is not written, and the next pass asks again.
        """
        if decision.moved is None or decision.moved.reason == ADVANCED:
            return decision
        live = await self.cluster.get(key)
        return edited_by(decision, editor(live["metadata"])) if live is not None else decision

    def _view(self, head: CheckpointHead, found: list[Pod]) -> HeadView:
        namespace, model = head.metadata.namespace, head.spec.model_ref.name
        ref, leads = head.spec.checkpoint_ref, head_request.leads(head)
        namesake = self.lister.model(namespace, head.metadata.name)
        return HeadView(
            head=head,
            model=self.lister.model(namespace, model),
            lineage=self.lister.lineage(namespace, model),
            heads=self.lister.heads(namespace, model),
            named=self.lister.checkpoint(namespace, ref.name) if ref is not None else None,
            leader=None if leads else self.lister.leader(namespace, model),
            rollouts=self.rollouts.seen(namespace, found),
            trainer_term=self.trainers.term(namespace, model),
            waiting=self._waiting(head, found),
            namesake=namesake is not None and not leads,
            gateway_url=self.gateway_url,
        )

    def _waiting(self, head: CheckpointHead, found: list[Pod]) -> str:
        """Why no rollout is up: the reason its pods give, or why there are no pods."""
        namespace = head.metadata.namespace
        named = pods.with_blockers(found, self.blockers.of(namespace, "Pod"))
        named = pods.in_queue(named, self.queues.of(namespace))
        deployment = ObjectKey("Deployment", namespace, rollout_name(head.spec.model_ref.name))
        refused = uncreated(self.lister.body(deployment))
        return pods.waiting(named) or (str(refused) if refused is not None and not found else "")

    def _pods(self, head: CheckpointHead) -> list[Pod]:
        namespace, model = head.metadata.namespace, head.spec.model_ref.name
        return pods.live(self.lister.pods(namespace, "rollout", model=model))

    async def _load(
        self, head: CheckpointHead, found: list[Pod], decision: HeadDecision
    ) -> float | None:
        """Have the rollouts load the adapters of all heads; seconds until they are asked again."""
        if all(desired.head != head.metadata.name for desired in decision.load):
            # Leave the rollouts to the heads that fit.
            return None
        namespace, model = head.metadata.namespace, head.spec.model_ref.name
        return await self.rollouts.serve(namespace, model, found, decision.load)

    def _report(self, namespace: str, status: CheckpointHeadStatus) -> None:
        """Have the target's Checkpoint reconciled if loading showed its condition to be wrong."""
        if status.target is None:
            return
        target = self.lister.checkpoint(namespace, status.target.name)
        if target is None:
            return
        refused = self.rollouts.refusal(namespace, target.spec.digest) is not None
        if refused == conditions.is_true(target.status.conditions, conditions.READY):
            self.enqueue(ObjectKey("Checkpoint", namespace, target.metadata.name))

    async def _write(self, body: Body, head: CheckpointHead, decision: HeadDecision) -> None:
        """Write the status, with Events of moves that an edit caused and pins that cannot be met.

        ``body`` is the version that was decided on: ClusterError 409 if there is a newer one.
        """
        moved, status, before = decision.moved, decision.status, head.status
        body = await self.writer.write("CheckpointHead", body, status) or body
        if moved is not None and moved.reason != ADVANCED:
            by = f", asked for by {moved.editor}" if moved.editor is not None else ""
            text = f"serves {moved.name or 'the base'} since term {moved.term}{by}"
            await self.writer.record("CheckpointHead", body, "Normal", moved.reason, text)
        if conditions.is_true(status.conditions, conditions.STALLED):
            await self.writer.announce("CheckpointHead", body, before.conditions, status.conditions)


def _commitments(status: CheckpointHeadStatus) -> tuple[object, ...]:
    """The part of a status that must be on record before anything is done about it."""
    return (status.target, status.term, status.branch, status.branch_base, status.agreed)
