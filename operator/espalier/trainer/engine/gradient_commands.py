"""Gradient commands: checked before anything reaches the policy, and run on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from espalier.api.run.loss import Aggregation
from espalier.api.wire.gradients import (
    BackwardRequest,
    ForwardBackwardRequest,
    ForwardRequest,
    TrajectoriesRequest,
)
from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.trainer.batch.data import Datum, datums, trained_advantages
from espalier.trainer.batch.estimates import refuse_estimates
from espalier.trainer.batch.kl import with_reference
from espalier.trainer.batch.losses import LossSpec
from espalier.trainer.batch.objective import call_spec
from espalier.trainer.compute.interface import Added, Batch, Compute, Referred
from espalier.trainer.engine.forwards import forward_data, held_forward
from espalier.trainer.engine.measurements import sampled
from espalier.trainer.memory.planner import Cuts
from espalier.trainer.problems import invalid
from espalier.trainer.prometheus import PHASES
from espalier.trainer.volume.checkpoint_store import Verified
from espalier.trainer.volume.command_log import CommandLog, Record
from espalier.unchanged import end_if_changed

# The Checkpoint of a name.
Find = Callable[[str], Verified]
Aggregated = tuple[Aggregation, int | None]
GradientRequest = ForwardBackwardRequest | BackwardRequest


@dataclass(frozen=True)
class LossCommand:
    """A forward-backward, checked and admitted: the gradients of a built-in loss.

    ``reference`` is the batch as the reference policy scores it, or its scores, where the log has
    them; None without a reference.
    """

    batch: Batch
    spec: LossSpec
    request: ForwardBackwardRequest
    reference: Batch | Referred | None = None

    def run(self, compute: Compute) -> Added:
        """Accumulates the gradients."""
        found, batch = self.reference, self.batch
        if isinstance(found, Batch):
            with PHASES.labels("reference").time():
                found = compute.refer(found)
        if found is not None:
            batch = batch.holding(with_reference(self.spec, batch.data, found.logprobs))
        with PHASES.labels("gradients").time():
            added = compute.add_loss(batch, self.spec, self.request.group_size)
        if found is not None:
            added = replace(added, cuts=found.cuts + added.cuts, referred=found.logprobs)
        if self.spec.compares_policies:
            advantages = trained_advantages(self.batch.data)
            added = replace(added, tally=replace(added.tally, advantages=advantages))
        return _with_rewards(added, self.request)

    @property
    def aggregation(self) -> Aggregated:
        """How its gradients add up with those of other calls."""
        return self.request.aggregation, self.request.aggregation_constant


@dataclass(frozen=True)
class WeightsCommand:
    """A backward, checked and admitted: the gradients of a loss that the client computed.

    ``forward`` is the request whose log-probs the weights are for.
    """

    batch: Batch
    request: BackwardRequest
    forward: ForwardRequest

    def run(self, compute: Compute) -> Added:
        """Accumulates the gradients."""
        with PHASES.labels("gradients").time():
            added = compute.add_weights(
                self.batch,
                self.request.weights,
                given=self.request.metrics,
                group_size=self.forward.group_size,
                forward=self.request.forward_id,
            )
        return _with_rewards(added, self.forward)

    @property
    def aggregation(self) -> Aggregated:
        """A client's loss is a sum."""
        return "TokenSum", None


GradientCommand = LossCommand | WeightsCommand


def _with_rewards(added: Added, request: TrajectoriesRequest) -> Added:
    """Adds to the tally all rewards, those of masked samples too, and what sampled them."""
    rewards = tuple(i.reward for i in request.inputs if isinstance(i, TrajectoryPayload))
    tally = replace(added.tally, rewards=rewards, sampled=sampled(request.inputs))
    return replace(added, tally=tally)


def gradient_command(
    compute: Compute,
    log: CommandLog,
    request: GradientRequest,
    cuts: Cuts = (),
    referred: list[list[float]] | None = None,
    *,
    find: Find,
) -> GradientCommand:
    """A new gradient command, or with its ``cuts`` a logged one.

    ``referred`` are the reference's log-probs, where the log has them: the reference may be gone.
    ``find`` gives a verified checkpoint by its name. Raises 422, 404 or 413 before anything
    is computed.
    """
    if isinstance(request, BackwardRequest):
        return _backward(compute, log, request, cuts)
    return _forward_backward(compute, request, cuts, referred, find)


def logged_request(log: CommandLog, record: Record) -> GradientRequest:
    """The request of a pending gradient command."""
    if record.kind == "backward":
        return BackwardRequest.model_validate_json(log.body(record))
    return ForwardBackwardRequest.model_validate_json(log.body(record))


def hold_reference(compute: Compute, field: str, name: str | None, find: Find) -> None:
    """Has the reference policy of a command at hand, before its batch is admitted.

    ``field`` of the command names a Checkpoint (``name``), or the base (None). Raises 422 or 409.
    """
    if compute.adapter.type == "Full":
        raise invalid(
            field,
            f"is {name or 'the base'}, and spec.adapter.type Full trains the base itself: no copy "
            "of it is left, and no second one is loaded",
            "leave it out, or train an adapter: create the model with spec.adapter.type LoRA",
        )
    if name is None:
        compute.hold_reference(None)
        return
    found = find(name)
    compute.hold_reference(found.path)
    end_if_changed(found.noted)


def _forward_backward(
    compute: Compute,
    request: ForwardBackwardRequest,
    cuts: Cuts,
    referred: list[list[float]] | None,
    find: Find,
) -> LossCommand:
    spec = call_spec(request)
    if not spec.compares_policies:
        estimator, scale = request.advantage_estimator, request.advantage_scale
        refuse_estimates(estimator, scale, f"{spec.name} reads no advantages")
    everything = datums(
        request,
        compute.limits,
        policies_compared=spec.compares_policies,
        weighted=spec.takes_weights,
    )
    data = [datum for datum in everything if not datum.masked]
    if not data:
        raise invalid(
            "inputs",
            "every sample is masked, so there is nothing to train on",
            "leave this batch out, or unmask a sample",
        )
    kl = spec.objective.kl
    if kl.reference is None:
        return LossCommand(compute.admit(data, spec, cuts), spec, request)
    # A replay repeats the cuts of both passes.
    half = len(cuts) // 2
    if referred is not None:
        batch = compute.admit(data, spec, cuts[half:])
        return LossCommand(batch, spec, request, Referred(referred, cuts[:half]))
    hold_reference(compute, "kl.reference", kl.checkpoint, find)
    batch = compute.admit(data, spec, cuts[half:])
    reference = compute.admit(data, spec, cuts[:half]) if cuts else batch
    return LossCommand(batch, spec, request, reference)


def _backward(
    compute: Compute, log: CommandLog, request: BackwardRequest, cuts: Cuts
) -> WeightsCommand:
    forward = held_forward(log, request.forward_id)
    data = forward_data(compute.limits, forward)
    _check_weights(request.weights, data)
    return WeightsCommand(compute.admit(data, cuts=cuts), request, forward)


def _check_weights(weights: list[list[float]], data: list[Datum]) -> None:
    if len(weights) != len(data):
        raise invalid(
            "weights",
            f"has {len(weights)} rows for {len(data)} datums",
            "send one row per datum that forward returned",
        )
    for index, (row, datum) in enumerate(zip(weights, data, strict=True)):
        if len(row) != len(datum.output):
            raise invalid(
                f"weights[{index}]",
                f"has {len(row)} values for {len(datum.output)} log-probs",
                "send one weight per log-prob that forward returned",
            )
        if datum.masked and any(row):
            raise invalid(
                f"weights[{index}]",
                "is not 0 everywhere, and the sample is masked",
                "multiply the weights by the mask that forward returned",
            )
