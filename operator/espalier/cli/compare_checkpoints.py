"""Compares two checkpoints. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from espalier.api.checkpoint import Checkpoint
from espalier.api.meta import decimal

BASE = "base"


@dataclass(frozen=True)
class Between:
    """Two checkpoints and how they relate.

    Attributes:
        ancestor: the newest checkpoint that both come from; ``base`` if there is none.
        back: steps from the first down to the ancestor; ``forward``: from there up to the second.
        metrics: by name, the values of both; None where one lacks it.
        settings: hyperparameters that differ.
    """

    first: str
    second: str
    ancestor: str
    back: int
    forward: int
    metrics: Mapping[str, tuple[float | None, float | None]]
    settings: Mapping[str, tuple[str, str]]


def between(first: Checkpoint, second: Checkpoint, known: Sequence[Checkpoint]) -> Between:
    """How two checkpoints of one model relate; ``known``: all that the model has."""
    by_name = {checkpoint.metadata.name: checkpoint for checkpoint in known}
    one, other = _line(first, by_name), _line(second, by_name)
    ancestor = next((name for name in one if name in other), BASE)
    values = [
        {metric.name: float(decimal(metric.value)) for metric in checkpoint.status.metrics}
        for checkpoint in (first, second)
    ]
    settings = [
        {**checkpoint.spec.hyperparameters.wire(), "term": checkpoint.spec.term}
        for checkpoint in (first, second)
    ]
    return Between(
        first=first.metadata.name,
        second=second.metadata.name,
        ancestor=ancestor,
        back=one.index(ancestor),
        forward=other.index(ancestor),
        metrics={
            name: (values[0].get(name), values[1].get(name))
            for name in sorted(values[0] | values[1])
        },
        settings={
            name: (str(settings[0].get(name, "")), str(settings[1].get(name, "")))
            for name in sorted(settings[0] | settings[1])
            if settings[0].get(name) != settings[1].get(name)
        },
    )


def _line(checkpoint: Checkpoint, by_name: Mapping[str, Checkpoint]) -> list[str]:
    """The names from a checkpoint down to its oldest known ancestor, and the base."""
    line = [checkpoint.metadata.name]
    while (parent := checkpoint.spec.parent_ref) is not None and parent.name not in line:
        line.append(parent.name)
        if parent.name not in by_name:
            break
        checkpoint = by_name[parent.name]
    return [*line, BASE]
