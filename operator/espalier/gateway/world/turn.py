"""Which run trains a model now. Pure."""

from __future__ import annotations

from espalier.api.trainingrun import TrainingRun
from espalier.core import conditions
from espalier.core.head.head_request import paused
from espalier.core.run.alignment import MISALIGNED
from espalier.core.run.run import SUSPENDED
from espalier.core.run.turn import active
from espalier.gateway.world.world import NamespacedName, ServedWorld


def active_run(world: ServedWorld, model: NamespacedName) -> TrainingRun | None:
    """The run whose turn it is on the model."""
    return active(world.runs_of(model))


def is_paused(world: ServedWorld, model: NamespacedName) -> bool:
    """True while a pin of the model's head that the operator has accepted pauses training."""
    head = world.head_of(model)
    return head is not None and paused(head)


def misaligned(run: TrainingRun) -> str:
    """Why the operator holds the run for its log-probs; empty if it does not.

    What it found for an earlier spec holds nothing: an edit may have let the run go.
    """
    found = conditions.find(run.status.conditions, SUSPENDED)
    if found is None or found.status != "True" or found.reason != MISALIGNED:
        return ""
    return found.message if found.observed_generation == run.metadata.generation else ""


def live_term(world: ServedWorld, model: NamespacedName) -> int:
    """The term that the model trains under; 0 before its head has one."""
    head = world.head_of(model)
    return head.status.term if head is not None else 0
