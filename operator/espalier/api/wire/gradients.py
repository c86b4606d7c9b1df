"""Forward, backward, and what they answer."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from espalier.api.objective import Objective
from espalier.api.run.advantage import Estimator, Scale
from espalier.api.wire.base import Real, Reals, Whole, Wire
from espalier.api.wire.trajectory import TrajectoryPayload


class TrajectoriesRequest(Wire):
    """Trajectories, which a command scores or learns from.

    A group is what shares an id, or ``group_size`` in a row; without either all inputs are one
    group, as in HUD. ``temperature`` is that of the samples that name none; without it 1, HUD's.
    """

    inputs: Annotated[list[str | TrajectoryPayload], Field(fail_fast=True)] = Field(min_length=1)
    group_size: Whole | None = Field(default=None, ge=1)
    reward_scale: Real = 1.0
    temperature: Real | None = Field(default=None, gt=0)


class ForwardRequest(TrajectoriesRequest):
    """Log-probs without gradients.

    ``reference`` (ours, not HUD's) asks for those of a reference policy as well: ``base``, which is
    the policy with its adapter switched off, or the name of a Checkpoint. LoRA only. Without one
    the request is as versions before wrote it, whose trainers and logs know no such field.
    """

    reference: Annotated[str, Field(min_length=1, max_length=63)] | None = Field(
        default=None, exclude_if=lambda v: v is None
    )


class ForwardBackwardRequest(TrajectoriesRequest, Objective):
    """Adds the gradient of a built-in loss to the accumulated ones.

    ``num_substeps`` is HUD's number of parts to compute the batch in. Gradients are sums, so every
    value gives the same result; the trainer sizes the parts for its device.

    Ours: the fields of ``Objective``, and how rewards become advantages, as in
    ``core.advantages``; HUD's is the reward minus the mean of its group.
    """

    loss_fn: str = "importance_sampling"
    loss_fn_config: dict[str, Real] | None = None
    num_substeps: Whole = Field(default=1, ge=1)
    advantage_estimator: Estimator = "GroupMean"
    advantage_scale: Scale = "None"


class ForwardBackwardResult(Wire):
    """Metrics are named ``name:reduction``; ``loss:sum`` is always there."""

    metrics: dict[str, float]
    num_datums: int


class DatumTensors(Wire):
    """One datum: equal-length lists over its target positions.

    ``reference_logprobs`` (ours, not HUD's) are there where the request named a reference: HUD's
    client refuses a field that it does not know.
    """

    reward: float
    traj_idx: int
    group_idx: int | None = None
    logprobs: list[float]
    sampling_logprobs: list[float]
    mask: list[float]
    reference_logprobs: list[float] | None = Field(default=None, exclude_if=lambda v: v is None)


class ForwardResult(Wire):
    """``forward_id`` names the datums for a later backward."""

    forward_id: str
    data: list[DatumTensors]


class BackwardRequest(Wire):
    """``weights[d][t] = -dC/dlogprob`` of a loss that the client computed."""

    forward_id: str
    weights: Annotated[list[Reals], Field(fail_fast=True)]
    metrics: dict[str, Real] = Field(default_factory=dict)


class LossList(Wire):
    """The losses that forward-backward takes."""

    losses: list[str]
