"""A batch that several optimizer steps are taken with: how it is cut, and what is left of it. Pure.

What is left goes with every step to the trainer, which keeps it with the step's checkpoint. So a
loop that starts again between two minibatches takes the very samples that the killed one had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from espalier.api.metric_names import BATCH_AGE, EPOCH, MINIBATCH, TOKENS_SAMPLED
from espalier.api.wire import BatchLeft, DatumTensors, TrajectoryPayload

# In metrics that count steps since a batch was sampled.
_STALENESS = "async/staleness_steps/"
# What a step says of its own time, and not of its samples.
_OF_NOW = ("tracking/", "time/")


@dataclass(frozen=True)
class Uses:
    """How often a batch is learnt from: ``epochs`` over its ``minibatches``."""

    minibatches: int = 1
    epochs: int = 1

    @property
    def steps(self) -> int:
        """Optimizer steps of a batch."""
        return self.minibatches * self.epochs


ONCE = Uses()


def cut(groups: Sequence[Sequence[TrajectoryPayload]], uses: Uses) -> BatchLeft:
    """Whole groups in as many minibatches as ``uses`` has, as equal as can be; fewer if they lack.

    What its samples say of their checkpoint goes with the batch's first step, so it is left out
    here, where every epoch would count it again.
    """
    count = min(uses.minibatches, len(groups))
    bounds = [len(groups) * number // count for number in range(count + 1)]
    parts = [
        [_unmeasured(payload) for group in groups[start:stop] for payload in group]
        for start, stop in pairwise(bounds)
    ]
    return BatchLeft(parts=parts, epochs=uses.epochs, next=0)


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
    """What is left once the next step was taken, or left out; None if nothing is."""
    following = left.next + 1
    if following >= len(left.parts) * left.epochs:
        return None
    last_epoch = following >= len(left.parts) * (left.epochs - 1)
    done = following % len(left.parts) if last_epoch else 0
    parts = [[] if number < done else part for number, part in enumerate(left.parts)]
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


def _unmeasured(payload: TrajectoryPayload) -> TrajectoryPayload:
    samples = [sample.model_copy(update={"checkpoint": None}) for sample in payload.samples]
    return payload.model_copy(update={"samples": samples})
