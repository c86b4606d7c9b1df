"""From a model name in a request to an adapter and the pods that serve it. Pure.

``slug``, ``slug@base`` or ``slug@<checkpoint>``; a slug is a model's name, or ``namespace/name``
where two served namespaces have a model of that name. A model's uid, HUD's model id, means it too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from espalier.api.trainablemodel import TrainableModel
from espalier.core.names import BASE, adapter_name
from espalier.gateway.world.pod_addresses import PodAddress, why_none_ready
from espalier.gateway.world.world import NamespacedName, ServedWorld

ROLLOUT = "rollout"
NEAREST = 3
NO_REPLICAS = "NoReplicas"


@dataclass(frozen=True)
class Slug:
    """What a slug stands for; ``head`` equals ``model`` for the model's own."""

    model: NamespacedName
    head: NamespacedName


@dataclass(frozen=True)
class Target:
    """Where a request goes: the name the rollouts know, its checkpoint's, and ready pods.

    ``checkpoint`` is empty for the base.
    """

    model: NamespacedName
    adapter: str
    checkpoint: str
    pods: tuple[PodAddress, ...]


@dataclass(frozen=True)
class Unknown:
    """No such model or checkpoint. ``nearest`` are existing slugs (with ref), best first."""

    detail: str
    nearest: tuple[str, ...] = ()


@dataclass(frozen=True)
class NotReady:
    """The name is right and nothing can answer yet: a Kubernetes reason and its message.

    ``passing``: as far as can be seen, it becomes ready by itself.
    """

    reason: str
    message: str
    remedy: str = ""
    passing: bool = True


def split(requested: str) -> tuple[str, str]:
    """``slug@ref`` as (slug, ref); the ref of a bare slug is empty."""
    slug, _, ref = requested.partition("@")
    return slug, ref


def slug_of(world: ServedWorld, name: NamespacedName) -> str:
    """The shortest slug that means only this model, or this head."""
    others = (NamespacedName(n, name.name) for n in world.namespaces if n != name.namespace)
    shared = any(_stands_for(world, other) for other in others)
    return str(name) if shared or _of_uid(world, name.name) else name.name


def find_slug(world: ServedWorld, slug: str) -> Slug | Unknown:
    """The model, and the head of it, that a slug means."""
    return one_of(world, slug, meanings(world, slug))


def meanings(world: ServedWorld, slug: str) -> list[Slug]:
    """All that a slug may mean: a bare name may be in more than one namespace."""
    if "/" in slug:
        found = _stands_for(world, NamespacedName(*slug.split("/", 1)))
        return [found] if found is not None else []
    # First, because nobody can choose a uid: an object named after one must not take it over.
    by_uid = _of_uid(world, slug)
    if by_uid is not None:
        return [Slug(by_uid, by_uid)]
    return [s for n in world.namespaces if (s := _stands_for(world, NamespacedName(n, slug)))]


def one_of(world: ServedWorld, slug: str, meant: Sequence[Slug]) -> Slug | Unknown:
    """The only one of a slug's meanings; Unknown names what to write for one of several."""
    if len(meant) == 1:
        return meant[0]
    if meant:
        names = tuple(str(one.head) for one in meant)
        return Unknown(f"model {slug!r} is in more than one namespace", names)
    return Unknown(f"no model {slug!r}", nearest_slugs(world, slug))


def find_model(world: ServedWorld, slug: str) -> NamespacedName | Unknown:
    """The model that a slug means in a training request; a model's other heads only serve."""
    found = find_slug(world, slug)
    return found if isinstance(found, Unknown) else model_of(world, slug, found)


def model_of(world: ServedWorld, slug: str, found: Slug) -> NamespacedName | Unknown:
    """The model that a slug names; Unknown for one of its other heads."""
    if found.head != found.model:
        detail = f"{slug!r} is a head of model {found.model.name}, and only sampled"
        return Unknown(detail, (slug_of(world, found.model),))
    return found.model


def slugs(world: ServedWorld) -> list[Slug]:
    """Every existing slug, models first."""
    own = [Slug(model, model) for model in sorted(world.models)]
    others = [found for head in sorted(world.heads) if (found := _head_slug(world, head))]
    return [slug for slug in [*own, *others] if slug.model.namespace in world.namespaces]


def nearest_slugs(world: ServedWorld, slug: str) -> tuple[str, ...]:
    """The slugs most like a mistyped one."""
    return _nearest(slug, {slug_of(world, known.head) for known in slugs(world)})


def _of_uid(world: ServedWorld, uid: str) -> NamespacedName | None:
    """The served model of a uid, by which HUD's client names models."""
    found = world.uids.get(uid)
    return found if found is not None and found.namespace in world.namespaces else None


def _stands_for(world: ServedWorld, name: NamespacedName) -> Slug | None:
    """What a name in a served namespace means; a model takes precedence over a head."""
    if name.namespace not in world.namespaces:
        return None
    return Slug(name, name) if name in world.models else _head_slug(world, name)


def _head_slug(world: ServedWorld, name: NamespacedName) -> Slug | None:
    """The slug of a head other than its model's own."""
    head = world.heads.get(name)
    if head is None or name in world.models:
        return None
    model = name.beside(head.spec.model_ref.name)
    return Slug(model, name) if model in world.models else None


def resolve(
    world: ServedWorld, model: NamespacedName, ref: str, head: NamespacedName | None = None
) -> Target | Unknown | NotReady:
    """The adapter and the ready pods for an existing model.

    Args:
        world: the cluster as it is now.
        model: a key of ``world.models``.
        ref: empty for the head, ``base``, or the name of a Checkpoint of the model or of the
            checkpoint it was forked from.
        head: the head to serve where ``ref`` names none; None for the model's own.
    """
    found = _adapter(world, model, ref, head)
    if not isinstance(found, tuple):
        return found
    ready = tuple(pod for pod in world.pods_of(model, ROLLOUT) if pod.ready)
    return Target(model, *found, ready) if ready else _why_not_ready(world, model)


def could_be_committed(world: ServedWorld, model: NamespacedName, ref: str) -> bool:
    """True if a checkpoint of this model may have the name but has not been seen yet."""
    pattern = rf"{re.escape(model.name)}-(b[0-9]+-)?[0-9]{{6,}}"
    return bool(re.fullmatch(pattern, ref)) and model.beside(ref) not in world.checkpoints


def _adapter(
    world: ServedWorld, model: NamespacedName, ref: str, name: NamespacedName | None
) -> tuple[str, str] | Unknown | NotReady:
    """The name that the rollouts know, and the checkpoint's."""
    if ref == BASE:
        return BASE, ""
    if ref:
        return _adapter_of_checkpoint(world, model, ref)
    own = name is None or name == model
    head = world.head_of(model) if own else world.heads.get(name or model)
    if head is None or head.status.current is None:
        return _why_not_ready(world, model)
    return adapter_name(model.name, head.status.current.digest), head.status.current.name


def _adapter_of_checkpoint(
    world: ServedWorld, model: NamespacedName, ref: str
) -> tuple[str, str] | Unknown:
    checkpoint = world.checkpoints.get(model.beside(ref))
    root = world.models[model].status.root_checkpoint_ref
    is_root = root is not None and root.name == ref
    if checkpoint is None or not (is_root or checkpoint.spec.model_ref.name == model.name):
        own = [
            c.metadata.name
            for key, c in world.checkpoints.items()
            if key.namespace == model.namespace and c.spec.model_ref.name == model.name
        ]
        nearest = tuple(f"{slug_of(world, model)}@{name}" for name in _nearest(ref, [*own, BASE]))
        return Unknown(f"model {slug_of(world, model)!r} has no checkpoint {ref!r}", nearest)
    return adapter_name(model.name, checkpoint.spec.digest), ref


def _why_not_ready(world: ServedWorld, model: NamespacedName) -> NotReady:
    pods = world.pods_of(model, ROLLOUT)
    waiting = why_none_ready(pods)
    if waiting is not None:
        message = f"the rollouts of {model} are not ready: {waiting.message}"
        return NotReady(waiting.reason, message, passing=not waiting.fault)
    if pods:
        return NotReady("HeadNotServed", f"the rollouts of {model} do not serve its head yet")
    return _without_pods(world.models[model])


def _without_pods(model: TrainableModel) -> NotReady:
    if model.spec.rollout.replicas == 0:
        return NotReady(
            NO_REPLICAS,
            f"model {model.metadata.name} has spec.rollout.replicas 0",
            "Set spec.rollout.replicas to 1 or more to serve it",
            passing=False,
        )
    conditions = {c.type: c for c in model.status.conditions}
    for kind, bad in (
        ("Stalled", "True"),
        ("SourceResolved", "False"),
        ("RolloutsReady", "False"),
        ("Ready", "False"),
    ):
        condition = conditions.get(kind)
        if condition is not None and condition.status == bad:
            return NotReady(condition.reason, condition.message, passing=kind != "Stalled")
    return NotReady("Pending", f"model {model.metadata.name} has no rollout pods yet")


def _nearest(word: str, words: Iterable[str]) -> tuple[str, ...]:
    return tuple(difflib.get_close_matches(word, sorted(words), n=NEAREST, cutoff=0.5))
