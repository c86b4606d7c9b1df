"""The bases that models of a namespace can be made from, by the names that clients give. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from espalier.api.source import Base
from espalier.api.trainablemodel import TrainableModel, TrainableModelSpec
from espalier.gateway.access.offers import Offer
from espalier.gateway.world.world import NamespacedName, ServedWorld

# The annotation of a model with the name that its client gave its base.
BASE_NAME = "espalier.dev/tinker-base"
Body = dict[str, Any]


def bases(
    world: ServedWorld, offers: Iterable[Offer], namespace: str
) -> dict[str, TrainableModelSpec]:
    """What a new model's spec is made of, by the name of its base.

    Those that the installation offers in the namespace, then those that its models have.
    """
    found = {offer.name: offer.spec for offer in offers if offer.namespace == namespace}
    for name in sorted(world.models):
        spec = world.models[name].spec
        base = spec.source.base
        if name.namespace != namespace or base is None or spec.adapter.type != "LoRA":
            continue
        if all(other.source.base != base for other in found.values()):
            found.setdefault(named(base), spec)
    return found


def named(base: Base) -> str:
    """The name of a base that nobody has named: where it comes from."""
    if base.hugging_face is not None:
        return base.hugging_face.repository
    if base.persistent_volume_claim is not None:
        claim = base.persistent_volume_claim
        return f"{claim.claim_name}/{claim.path}".rstrip("/")
    return base.image or ""


def base_name(world: ServedWorld, model: NamespacedName) -> str:
    """The name of a model's base: its client's, or that of what it goes back to."""
    seen: set[NamespacedName] = set()
    while model in world.models and model not in seen:
        seen.add(model)
        body = world.models[model]
        if given := body.metadata.annotations.get(BASE_NAME):
            return given
        if body.spec.source.base is not None:
            return named(body.spec.source.base)
        origin = body.spec.source.checkpoint_ref
        checkpoint = world.checkpoints.get(model.beside(origin.name)) if origin else None
        if checkpoint is None:
            break
        model = model.beside(checkpoint.spec.model_ref.name)
    return ""


def tokenizer(world: ServedWorld, model: NamespacedName) -> str | None:
    """Where a client finds the tokenizer: the hub's repository of the base, if it is of the hub."""
    body = world.models.get(model)
    base = body.spec.source.base if body is not None else None
    return base.hugging_face.repository if base is not None and base.hugging_face else None


def new_model(template: TrainableModelSpec, adapter: Body) -> Body:
    """The spec of a new, served model of a base: as its template, with an adapter of its own."""
    spec = template.wire()
    base = template.source.base
    assert base is not None, "only what has a base is a template"
    spec["source"] = {"base": base.wire()}
    spec["adapter"] = adapter
    if not template.rollout.replicas:
        spec["rollout"]["replicas"] = 1
    return spec


def fork(origin: TrainableModel, checkpoint: str, *, optimizer: bool) -> Body:
    """The spec of a model that goes on from a checkpoint of another; empty: from its beginning."""
    spec: Body = origin.spec.wire()
    if checkpoint:
        state = "Keep" if optimizer else "Reset"
        spec["source"] = {"checkpointRef": {"name": checkpoint, "optimizerState": state}}
    return spec
