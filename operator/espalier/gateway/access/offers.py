"""What can be trained or forked: bases that the installation offers, and models that there are."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import Field, TypeAdapter, ValidationError

from espalier.api.meta import Name, Type
from espalier.api.trainablemodel import TrainableModel, TrainableModelSpec
from espalier.core import conditions
from espalier.core.run.turn import active
from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.access.rights import SAMPLE, TRAIN
from espalier.gateway.world.world import NamespacedName, ServedWorld
from espalier.untrusted import field_path

VARIABLE = "ESPALIER_BASES"
# The kinds of the objects that make up a fork.
RESOURCES = ("checkpointheads", "trainingruns", "trainablemodels")


class Offer(Type):
    """A base that may be forked by name before any TrainableModel uses it."""

    name: str = Field(
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
        description="name, such as Qwen/Qwen3-4B.",
    )
    namespace: Name = Field(description="namespace that its forks are made in.")
    spec: TrainableModelSpec = Field(description="spec of the TrainableModel of a fork.")

    @property
    def id(self) -> str:
        """A UUID, as HUD's client takes a model's id to be; the same in every replica."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"espalier.dev/{self.namespace}/{self.name}"))


_OFFERS = TypeAdapter(list[Offer])


@dataclass(frozen=True)
class Offers:
    """The bases on offer."""

    offers: Sequence[Offer] = field(default_factory=tuple)

    @classmethod
    def read(cls, text: str, namespaces: Sequence[str]) -> Offers:
        """The offers of the chart's ``gateway.bases`` as JSON; ValueError names what is wrong."""
        try:
            offers = _OFFERS.validate_python(json.loads(text or "[]"))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ValueError(f"{field_path(first['loc'])}: {first['msg']}") from error
        for index, offer in enumerate(offers):
            if problem := _problem(offer, offers[:index], namespaces):
                raise ValueError(f"[{index}].{problem}")
        return cls(tuple(offers))

    def find(self, source: str) -> Offer | None:
        """The offer of an id or a name, in any case, as HUD's client matches."""
        wanted = source.lower()
        return next((o for o in self.offers if wanted in (o.id, o.name.lower())), None)

    async def of(self, auth: Authenticator, user: User) -> list[Offer]:
        """The offers that a caller may fork."""
        return [offer for offer in self.offers if await may_fork(auth, user, offer.namespace)]


async def may_fork(auth: Authenticator, user: User, namespace: str) -> bool:
    """Whether a caller may make the three objects of a fork in a namespace."""
    for resource in RESOURCES:
        if not await auth.allowed(user, "create", resource, NamespacedName(namespace, "")):
            return False
    return True


async def may_know_bases(auth: Authenticator, user: User, namespace: str) -> bool:
    """Whether a caller may be told which bases a namespace has: it may fork or sample there."""
    return await may_fork(auth, user, namespace) or await auth.allowed(
        user, *SAMPLE, NamespacedName(namespace, "")
    )


async def drives(
    auth: Authenticator, user: User, world: ServedWorld, model: NamespacedName
) -> bool:
    """Whether a caller can train a model as it is: its run is a client's, and theirs to update."""
    run = active(world.runs_of(model))
    if run is None or run.spec.driver != "Client":
        return False
    return await auth.allowed(user, *TRAIN, model.beside(run.metadata.name))


async def trainable(
    auth: Authenticator, user: User, world: ServedWorld, model: NamespacedName
) -> bool:
    """Whether a caller can train a model as it is, or fork it."""
    if await drives(auth, user, world, model):
        return True
    there = world.models.get(model)
    return there is not None and not _stalled(there) and await may_fork(auth, user, model.namespace)


def _stalled(model: TrainableModel) -> bool:
    return conditions.is_true(model.status.conditions, conditions.STALLED)


def _problem(offer: Offer, before: Sequence[Offer], namespaces: Sequence[str]) -> str:
    """The field, the problem and the remedy; empty if the offer is valid."""
    if offer.namespace not in namespaces:
        served = ", ".join(namespaces)
        return f"namespace: {offer.namespace} is not served: name one of {served}"
    if offer.spec.source.base is None or offer.spec.source.checkpoint_ref is not None:
        return "spec.source: an offer is of a base: give spec.source.base alone"
    if any(other.name.lower() == offer.name.lower() for other in before):
        return f"name: {offer.name} is offered twice: give each another name"
    if offer.name.partition("/")[0] in namespaces:
        return f"name: {offer.name} reads as a model of a served namespace: give it another name"
    return ""
