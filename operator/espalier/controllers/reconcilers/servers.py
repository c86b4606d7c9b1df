"""Applies the manifests of a model's servers: trainer, rollouts, and their Services."""

from __future__ import annotations

from dataclasses import dataclass, field

from espalier.api.trainablemodel import TrainableModel
from espalier.controllers.observed.lister import Lister
from espalier.core import conditions
from espalier.core.manifests.installation import ChildSettings
from espalier.core.manifests.intent import Manifest, foreign, is_current
from espalier.core.manifests.queue import after_refusal
from espalier.core.manifests.sampler import rollout_deployment, rollout_service
from espalier.core.manifests.trainer import trainer_service, trainer_statefulset
from espalier.core.model.model import ModelDecision
from espalier.core.names import trainer_name
from espalier.kube.cluster import HTTP_CONFLICT, Cluster, ClusterError
from espalier.kube.objects import ObjectKey, key_of

# Kueue gives a quota back within seconds.
HELD_SECONDS = 1.0


@dataclass(frozen=True)
class _Wanted:
    """The inputs of the manifests of a model's servers; None for servers to leave alone."""

    uid: str
    generation: int
    base: str
    rollouts: int | None
    trainers: int | None
    # Models whose checkpoints they read beside their own.
    sampled: tuple[str, ...]
    trained: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Acts on the children of models that serve them."""

    cluster: Cluster
    lister: Lister
    settings: ChildSettings
    # Manifests are built and hashed again only when something in them changes.
    _intents: dict[ObjectKey, tuple[_Wanted, list[Manifest]]] = field(
        default_factory=dict, init=False
    )

    async def apply(self, model: TrainableModel, decision: ModelDecision) -> float | None:
        """Apply the manifests; seconds until what a queue does not let through is tried again."""
        key = ObjectKey("TrainableModel", model.metadata.namespace, model.metadata.name)
        trainer = trainer_key(key)
        wanted = _Wanted(
            model.metadata.uid,
            model.metadata.generation,
            decision.status.resolved.digest if decision.status.resolved else "",
            decision.rollout_replicas,
            # A trainer is made when it is first wanted.
            decision.trainer_replicas
            if decision.trainer_replicas or self.lister.body(trainer) is not None
            else None,
            decision.sampled,
            decision.trained,
        )
        built = self._intents.get(key)
        if built is None or built[0] != wanted:
            built = self._intents[key] = (wanted, self._build(model, wanted))
        held = False
        for intent in built[1]:
            child = key_of(intent["kind"], intent)
            if not is_current(self.lister.body(child), intent):
                await self._check_name(child, intent)
                held |= not await self._applied(child, intent)
        return HELD_SECONDS if held else None

    def forget(self, model: ObjectKey) -> None:
        """The model is gone."""
        self._intents.pop(model, None)

    async def _applied(self, child: ObjectKey, intent: Manifest) -> bool:
        """Whether a child is as it should be; one that no queue lets be changed is made anew."""
        try:
            applied = await self.cluster.apply(child.kind, intent)
        except ClusterError as error:
            remedy, live = after_refusal(error.message), self.lister.body(child)
            if remedy == "Raise":
                raise
            if remedy == "Replace" and live is not None:
                await self.cluster.delete(child, uid=live["metadata"]["uid"])
            return False
        self.lister.learn(child.kind, applied)
        return True

    async def _check_name(self, child: ObjectKey, intent: Manifest) -> None:
        """Refuses to take over what somebody else made under the name of a child.

        Objects without our labels are not watched, so the API server is asked, before a write only.
        """
        live = await self.cluster.get(child)
        whose = foreign(live, intent) if live is not None else ""
        if whose:
            raise ClusterError(
                HTTP_CONFLICT,
                conditions.NAME_TAKEN,
                f"{child.kind} {child.name} is there already and is {whose}: it is left as it is. "
                f"Delete or rename it, or give this model another name",
            )

    def _build(self, model: TrainableModel, wanted: _Wanted) -> list[Manifest]:
        settings, intents = self.settings, list[Manifest]()
        if wanted.rollouts is not None:
            rollout = model.spec.rollout.model_copy(update={"replicas": wanted.rollouts})
            spec = model.spec.model_copy(update={"rollout": rollout})
            scaled = model.model_copy(update={"spec": spec})
            intents.append(rollout_service(model))
            intents.append(
                rollout_deployment(scaled, settings, base=wanted.base, others=wanted.sampled)
            )
        if wanted.trainers is not None:
            intents.append(trainer_service(model))
            intents.append(
                trainer_statefulset(
                    model,
                    settings,
                    base=wanted.base,
                    replicas=wanted.trainers,
                    others=wanted.trained,
                )
            )
        return intents


def trainer_key(model: ObjectKey) -> ObjectKey:
    """The StatefulSet of a model's trainer."""
    return ObjectKey("StatefulSet", model.namespace, trainer_name(model.name))
