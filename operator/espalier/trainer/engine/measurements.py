"""Metrics of checkpoints that arrive with a step: measured by the client, or from samples."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.api.metric_names import (
    MEASURED_CHECKPOINTS,
    MEASURED_MOST,
    REWARD,
    is_measured,
    of_rewards,
    of_step,
)
from espalier.api.wire.base import Wire
from espalier.api.wire.gradients import BackwardRequest
from espalier.api.wire.step import OptimStepRequest
from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.core.names import parse_checkpoint_name
from espalier.trainer.batch.tally import Tally
from espalier.trainer.problems import invalid

Figures = dict[str, dict[str, float]]


def check(request: Wire, model: str) -> None:
    """Raises 422 for a checkpoint's metric sent as the step's, or the reverse."""
    if isinstance(request, OptimStepRequest | BackwardRequest):
        for name in filter(is_measured, request.metrics):
            raise invalid(
                f"metrics.{name}",
                "is a figure of a checkpoint, and metrics are of the step",
                f"name it {of_step(name)}, or send it in optim-step's measured, under the name of "
                "the checkpoint that it was measured of",
            )
    if isinstance(request, OptimStepRequest):
        _check_measured(request.measured, model)


def sampled(inputs: Sequence[str | TrajectoryPayload]) -> tuple[tuple[str, float], ...]:
    """Checkpoint and reward of every trajectory that one known checkpoint sampled alone."""
    rewards = []
    for item in inputs:
        if isinstance(item, TrajectoryPayload):
            names = {sample.checkpoint for sample in item.samples}
            name = names.pop() if len(names) == 1 else None
            if name:
                rewards.append((name, item.reward))
    return tuple(rewards)


def figures(tally: Tally, given: Figures, model: str) -> Figures:
    """A step's metrics by checkpoint: those of its samples, overridden by the client's.

    Rewards of the base and of other models' checkpoints are left out: they have no place in this
    model's tree.
    """
    rewards: dict[str, list[float]] = {}
    for name, reward in tally.sampled:
        if parse_checkpoint_name(model, name) is not None:
            rewards.setdefault(name, []).append(reward)
    # The client also knows the rewards of rollouts that it did not send, so its figures win.
    drawn = {
        name: of_rewards(seen)
        for name, seen in sorted(rewards.items())[-MEASURED_CHECKPOINTS:]
        if REWARD not in given.get(name, {})
    }
    return {n: drawn.get(n, {}) | given.get(n, {}) for n in sorted(drawn.keys() | given.keys())}


def _check_measured(measured: Figures, model: str) -> None:
    if len(measured) > MEASURED_CHECKPOINTS:
        raise invalid(
            "measured",
            f"is of {len(measured)} checkpoints",
            f"send at most {MEASURED_CHECKPOINTS} with one step",
        )
    for checkpoint, given in measured.items():
        if parse_checkpoint_name(model, checkpoint) is None:
            raise invalid(
                f"measured.{checkpoint}",
                f"is no checkpoint of model {model}",
                "send what was measured of this model's checkpoints alone; the base has no figures",
            )
        if len(given) > MEASURED_MOST:
            raise invalid(
                f"measured.{checkpoint}",
                f"has {len(given)} metrics",
                f"send at most {MEASURED_MOST} of a checkpoint",
            )
        for name in given:
            if not is_measured(name):
                raise invalid(
                    f"measured.{checkpoint}.{name}",
                    "is no name of a figure of a checkpoint",
                    "begin it with reward/ or eval/, or send it in metrics, as one of the step",
                )
