"""Reconciles a CheckpointHead: acknowledge, have it served, read back, then call it current."""

from __future__ import annotations

from espalier.api.checkpointhead import CheckpointHead, CheckpointHeadStatus
from espalier.controllers.context import Services
from espalier.core import conditions
from espalier.core.head import head_request, served_adapters
from espalier.core.head.head import HeadDecision, decide
from espalier.core.head.head_view import HeadView
from espalier.core.names import rollout_name
from espalier.core.pods import pods
from espalier.core.pods.blockers import uncreated
from espalier.core.pods.pods import Pod
from espalier.kube.objects import Key


class HeadReconciler:
    """Observes a head, its model's checkpoints and rollouts; writes the head's status alone."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def reconcile(self, key: Key) -> float | None:
        """One pass over a head; seconds until it should be looked at again."""
        head = self._services.snapshot.head(key.namespace, key.name)
        if head is None or head.metadata.deletion_timestamp is not None:
            return None
        before, view = head.status, self._view(head)
        decision = decide(view, self._services.now())
        if _commits(decision.status) != _commits(before):
            head = await self._write(key, head, decision)
        again = await self._serve(head)
        seen = self._services.rollouts.seen(key.namespace, self._pods(head))
        if head is not view.head or seen != view.rollouts:
            decision = decide(self._view(head), self._services.now())
        await self._write(key, head, decision)
        await self._tell(key, before, decision)
        self._report(head)
        return again

    def _view(self, head: CheckpointHead) -> HeadView:
        namespace, model = head.metadata.namespace, head.spec.model_ref.name
        snapshot, found = self._services.snapshot, self._pods(head)
        ref = head.spec.checkpoint_ref
        leads = head_request.leads(head)
        namesake = snapshot.model(namespace, head.metadata.name)
        return HeadView(
            head=head,
            model=snapshot.model(namespace, model),
            lineage=snapshot.lineage(namespace, model),
            named=snapshot.checkpoint(namespace, ref.name) if ref is not None else None,
            leader=None if leads else snapshot.leader(namespace, model),
            rollouts=self._services.rollouts.seen(namespace, found),
            trainer_term=self._services.trainers.term(namespace, model),
            waiting=self._waiting(head, found),
            namesake=namesake is not None and not leads,
            crowded_out=self._is_crowded_out(head),
            gateway_url=self._services.settings.gateway_url,
        )

    def _waiting(self, head: CheckpointHead, found: list[Pod]) -> str:
        """Why no rollout is up: of its pods, or why there is none."""
        namespace = head.metadata.namespace
        named = pods.hindered(found, self._services.hindrances.of(namespace, "Pod"))
        deployment = Key("Deployment", namespace, rollout_name(head.spec.model_ref.name))
        refused = uncreated(self._services.snapshot.cache.get(deployment))
        return pods.waiting(named) or (str(refused) if refused is not None and not found else "")

    def _pods(self, head: CheckpointHead) -> list[Pod]:
        namespace, model = head.metadata.namespace, head.spec.model_ref.name
        return pods.live(self._services.snapshot.pods(namespace, "rollout", model=model))

    def _wishes(
        self, head: CheckpointHead
    ) -> tuple[tuple[served_adapters.Wish, ...], tuple[served_adapters.Wish, ...]]:
        """The wishes of all heads of the model, and those that fit on a rollout."""
        namespace, name = head.metadata.namespace, head.spec.model_ref.name
        snapshot = self._services.snapshot
        found = served_adapters.wishes(
            name, snapshot.heads(namespace, name), snapshot.lineage(namespace, name)
        )
        return found, served_adapters.fitting(found, snapshot.model(namespace, name))

    def _is_crowded_out(self, head: CheckpointHead) -> bool:
        wishes, fitting = self._wishes(head)
        name = head.metadata.name
        kept = {wish.head for wish in fitting}
        return any(wish.head == name for wish in wishes) and name not in kept

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

    async def _serve(self, head: CheckpointHead) -> float | None:
        """Rollouts serve all heads of their model side by side; when they are to be asked again.

        Where this head is none of them, they are none of its concern.
        """
        _, fitting = self._wishes(head)
        if all(wish.head != head.metadata.name for wish in fitting):
            return None
        namespace, model = head.metadata.namespace, head.spec.model_ref.name
        return await self._services.rollouts.serve(namespace, model, self._pods(head), fitting)

    def _report(self, head: CheckpointHead) -> None:
        """Have the Checkpoint say what came to light when its bytes were loaded."""
        key = Key("CheckpointHead", head.metadata.namespace, head.metadata.name)
        held = self._services.snapshot.head(key.namespace, key.name)
        if held is None or held.status.target is None:
            return
        target = self._services.snapshot.checkpoint(key.namespace, held.status.target.name)
        if target is None:
            return
        refused = self._services.rollouts.refusal(key.namespace, target.spec.digest) is not None
        if refused == conditions.is_true(target.status.conditions, conditions.READY):
            self._services.enqueue(Key("Checkpoint", key.namespace, target.metadata.name))

    async def _tell(self, key: Key, before: CheckpointHeadStatus, decision: HeadDecision) -> None:
        """Events of moves that an edit caused, and of pins that cannot be met."""
        body = self._services.snapshot.cache.get(key)
        if body is None:
            return
        moved, status = decision.moved, decision.status
        if moved is not None and moved.reason != "Advanced":
            text = f"serves {moved.name or 'the base'} since term {moved.term}"
            await self._services.writer.record("CheckpointHead", body, "Normal", moved.reason, text)
        if conditions.is_true(status.conditions, conditions.STALLED):
            await self._services.writer.announce(
                "CheckpointHead", body, before.conditions, status.conditions
            )


def _commits(status: CheckpointHeadStatus) -> tuple[object, ...]:
    """What must be on record before anything is done about it."""
    return (status.target, status.term, status.branch, status.branch_base, status.agreed)
