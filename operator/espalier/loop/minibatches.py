"""A batch that several optimizer steps are taken with: how it is cut, and what is left of it. Pure.

What is left goes with every step to the trainer, which keeps it with the step's checkpoint. So a
loop that starts again between two minibatches takes the very samples that the killed one had.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TypeVar

from espalier.api.metric_names import BATCH_AGE, EPOCH, MINIBATCH, TOKENS_SAMPLED
from espalier.api.wire.batch_left import BatchLeft
from espalier.api.wire.gradients import DatumTensors
from espalier.api.wire.trajectory import TrajectoryPayload

T = TypeVar("T")

# In metrics that count steps since a batch was sampled.
_STALENESS = "async/staleness_steps/"
# What a step says of its own time, and not of its samples.
_OF_NOW = ("tracking/", "time/")


@dataclass(frozen=True)
class Uses:
    """How often a batch is learnt from: ``epochs`` over its ``minibatches``.

    ``seed`` and the step draw which groups share a minibatch in each epoch after the first.
    """

    minibatches: int = 1
    epochs: int = 1
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of a batch."""
        return self.minibatches * self.epochs


ONCE = Uses()


def cut(
    groups: Sequence[Sequence[TrajectoryPayload]], uses: Uses, step: int, most: int | None = None
) -> BatchLeft:
    """Whole groups in as many minibatches as ``uses`` has, as equal as can be; fewer if they lack,
    and at most ``most``, where the run has no more steps.

    What its samples say of their checkpoint goes with the batch's first step, so it is left out
    here, where every epoch would count it again. ``step`` is the run's that the batch begins with.
    """
    unmeasured = [[_unmeasured(payload) for payload in group] for group in groups]
    parts = _dealt(unmeasured, min(most or uses.minibatches, len(groups)))
    return BatchLeft(parts=parts, epochs=uses.epochs, next=0, order=f"{uses.seed}/{step}")


def part(left: BatchLeft) -> list[TrajectoryPayload]:
    """The trajectories of the next step."""
    return left.parts[left.next % len(left.parts)]


def seen_again(left: BatchLeft) -> list[int]:
    """The parts that are trained after a step has moved the policy from where it first saw them."""
    first = 0 if left.epochs > 1 else 1
    return list(range(first, len(left.parts)))


def anchored(left: BatchLeft, numbers: Sequence[int], data: Sequence[DatumTensors]) -> BatchLeft:
    """The batch with the trainer's log-probs in the parts of these numbers.

    ``data`` are those of all their samples, in order.
    """
    rows, parts = iter(data), list(left.parts)
    for number in numbers:
        parts[number] = [
            payload.model_copy(
                update={
                    "samples": [
                        sample.model_copy(update={"anchor_logprobs": next(rows).logprobs})
                        for sample in payload.samples
                    ]
                }
            )
            for payload in parts[number]
        ]
    return left.model_copy(update={"parts": parts})


def after(left: BatchLeft, *, taken: bool) -> BatchLeft | None:
    """What is left once the next step was taken, or left out; None if nothing is.

    Each epoch deals the groups out anew. A group stays whole: its rewards are compared.
    """
    following, parts = left.next + 1, left.parts
    if following >= len(parts) * left.epochs:
        return None
    epoch, done = divmod(following, len(parts))
    if not done:
        groups = [list(group) for part in parts for _, group in groupby(part, _group)]
        random.Random(f"{left.order}/{epoch}").shuffle(groups)
        parts = _dealt(groups, len(parts))
    if epoch == left.epochs - 1:
        parts = [[] if number < done else part for number, part in enumerate(parts)]
    return left.model_copy(
        update={"parts": parts, "next": following, "taken": left.taken + int(taken)}
    )


def metrics(left: BatchLeft, own: Mapping[str, float]) -> dict[str, float]:
    """The metrics of the next step: ``own`` are its own, on a batch's first with its samples'.

    Later steps repeat the figures of the samples, but for their tokens, which count once.
    """
    place = {
        MINIBATCH: float(left.next % len(left.parts) + 1),
        EPOCH: float(left.next // len(left.parts) + 1),
        BATCH_AGE: float(left.taken),
    }
    if not left.taken:
        return dict(own) | place
    repeated = {
        name: value + left.taken if name.startswith(_STALENESS) else value
        for name, value in left.metrics.items()
        if not name.startswith(_OF_NOW)
    }
    return dict(own) | repeated | place | {TOKENS_SAMPLED: 0.0}


def _dealt(groups: Sequence[Sequence[T]], count: int) -> list[list[T]]:
    """The groups in order, in ``count`` parts of about as many."""
    bounds = [len(groups) * number // count for number in range(count + 1)]
    return [
        [one for group in groups[start:stop] for one in group] for start, stop in pairwise(bounds)
    ]


def _group(payload: TrajectoryPayload) -> str | None:
    return payload.group_id


def _unmeasured(payload: TrajectoryPayload) -> TrajectoryPayload:
    samples = [sample.model_copy(update={"checkpoint": None}) for sample in payload.samples]
    return payload.model_copy(update={"samples": samples})
