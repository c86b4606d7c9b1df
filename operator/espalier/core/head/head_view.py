"""The input of a head's decision: its objects, and what the rollouts answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHead, CheckpointHeadStatus
from espalier.api.meta import Condition
from espalier.api.trainablemodel import TrainableModel
from espalier.api.wire.problem import Problem
from espalier.core import conditions
from espalier.core.lineage.lineage import Lineage, Point


@dataclass(frozen=True)
class SamplerPod:
    """A live rollout pod; ``loaded`` are the adapters it confirmed, None before it answered.

    ``problem`` is why it did not answer; ``refused`` are adapters that it cannot load as they are.
    """

    name: str
    ready: bool
    loaded: frozenset[str] | None = None
    problem: str = ""
    refused: Mapping[str, Problem] = field(default_factory=dict)


@dataclass(frozen=True)
class HeadView:
    """All that a head's decision depends on.

    ``heads`` are all of the model, this one among them; ``named`` the Checkpoint that
    spec.checkpointRef names, of any model; ``leader`` the head of the model's name when that
    is another one; ``trainer_term`` the term that the trainer was found at, 0 if unknown;
    ``waiting`` why there is no rollout, from Kubernetes; ``namesake`` that a model other than the
    head's has the head's name.
    """

    head: CheckpointHead
    model: TrainableModel | None
    lineage: Lineage
    heads: Sequence[CheckpointHead] = ()
    named: Checkpoint | None = None
    leader: CheckpointHead | None = None
    rollouts: Sequence[SamplerPod] = ()
    trainer_term: int = 0
    waiting: str = ""
    namesake: bool = False
    gateway_url: str = ""


def is_served(view: HeadView, adapter: str) -> bool:
    """Whether every ready rollout, and at least one, confirmed the adapter; or none is wanted."""
    if view.model is not None and view.model.spec.rollout.replicas == 0:
        return True
    confirmed = [rollout for rollout in view.rollouts if has(rollout, adapter)]
    return bool(confirmed) and all(
        has(rollout, adapter) for rollout in view.rollouts if rollout.ready
    )


def has(rollout: SamplerPod, adapter: str) -> bool:
    """Whether a rollout confirmed an adapter."""
    return rollout.loaded is not None and adapter in rollout.loaded


def is_current(status: CheckpointHeadStatus, target: Point) -> bool:
    """Whether the target is served already."""
    current = status.current
    return current is not None and (current.name, current.digest) == (target.name, target.digest)


def is_ready(checkpoint: Checkpoint) -> bool:
    """Whether a head may serve the checkpoint."""
    return conditions.is_true(checkpoint.status.conditions, conditions.READY)


def damage_on_record(checkpoint: Checkpoint) -> Condition | None:
    """The condition that says why trainer or rollouts refused a checkpoint."""
    return conditions.true(checkpoint.status.conditions, conditions.STALLED)
